"""Installs the package's wheel into new environments, and runs it there without a checkout.

Each environment is a Python with the newest or the oldest versions that setup.cfg allows (those
that uv resolves), extra [serve] included. In each the main job runs in its quick variant, new rows
are scored with what it has trained, that is exported, scores the same rows without the package and
answers over HTTP, and the tests run, or those that are asked for. In one of them the main job also
runs in circumstances that aren't a developer's: as a user who may write neither into the package
nor HOME, without a terminal, in a notebook, in other locales, in a folder with spaces and other
letters.

    python scripts/environments.py                                all of it, whole test suite: hours
    python scripts/environments.py --only=3.11-oldest,3.13 --tests=tests/model
    python scripts/environments.py --only=stock --tests=          no tests
    python scripts/environments.py --torch=torch==2.13.0 --work=FOLDER    another torch; keep all

An environment takes 6 GB of disk where torch comes with CUDA. A Python that isn't installed is
said. UV_FIND_LINKS, UV_CACHE_DIR and the like are uv's own. Ends with 1 where anything fails.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib import request

ROOT = Path(__file__).parent.parent
FILE = ROOT / "results" / "reliability" / "environments.csv"
COLUMNS = ("environment", "versions", "check", "outcome")
_SOURCE = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "recbole_escm2", "properties")
_OF_TESTS = ("tests", "scripts", "perf", "docs", "results", "CHANGELOG.md", "CITATION.cff")
_MAIN_JOB = ("--model=ESCM2_DR", "--dataset=ml-100k", "--impression_sample=0.1", "--epochs=2")
_PACKAGES = ("recbole", "torch", "numpy", "pandas", "pyarrow", "scipy", "numba", "scikit-learn")
_ROWS = """\
user_id,item_id,age,gender,occupation,release_year,class
196,242,49,M,writer,1997,Comedy
186,302,39,F,executive,1997,Drama
"""
_NOBODY = "65534"


@dataclass(frozen=True)
class Environment:
    """What is installed.

    Attributes:
        python: its version.
        oldest: whether with the oldest versions that are allowed, of what setup.cfg names.
        also: further requirements.
        is_stock: whether RecBole's own quick_start runs there, with its checks.
    """

    python: str
    oldest: bool = False
    also: tuple[str, ...] = ()
    is_stock: bool = False


#: Stock RecBole names np.float_, which numpy 2 hasn't, and imports ray 2.6.3, which needs
#: pkg_resources, which setuptools 82 hasn't.
ENVIRONMENTS = {
    "3.11-newest": Environment("3.11"),
    "3.11-oldest": Environment("3.11", oldest=True),
    "3.12": Environment("3.12"),
    "3.13": Environment("3.13"),
    "3.14": Environment("3.14"),
    "stock": Environment("3.11", False, ("recbole==1.2.1", "numpy<2", "setuptools<82"), True),
}
#: In which the circumstances are tried.
_ORDINARY = "3.11-newest"


def interpreter(version: str) -> str | None:
    """A Python of a version, the system's, on the path or pyenv's; None where none runs."""
    installed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    # the system's first, which every user may run
    names = [f"/usr/bin/python{version}", f"python{version}"]
    candidates = [*names, *map(str, installed.glob(f"{version}.*/bin/python"))]
    for candidate in candidates:
        with contextlib.suppress(OSError):
            if not subprocess.run([candidate, "-c", ""], capture_output=True).returncode:
                return candidate
    return None


def call(
    *command: str | Path, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal, and wait for it."""
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


class FailedError(Exception):
    """What was to be proved doesn't hold; the message says what came instead."""


def succeed(*command: str | Path, folder: Path, **how: Mapping[str, str]) -> str:
    """Run a command; returns what it has printed.

    Raises:
        FailedError: it fails.
    """
    done = call(*command, folder=folder, **how)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise FailedError(f"{shlex.join(map(str, command))}: {(said or ['no word'])[-1]}")
    return done.stdout


class Installed:
    """An environment with the package in it.

    Args:
        name: of the environment.
        folder: that it is made in.
        wheel: of the package.
        uv: the program.
        torch: requirement, where it isn't left to setup.cfg.

    Raises:
        FailedError: it can't be made.
    """

    def __init__(self, name: str, folder: Path, wheel: Path, uv: Path, torch: str | None) -> None:
        own = ENVIRONMENTS[name]
        python = interpreter(own.python)
        if python is None:
            raise FailedError(f"not tried: no Python {own.python} here")
        self.name, self.folder, self.uv = name, folder, uv
        folder.mkdir(parents=True)
        self.bin = folder / "venv" / "bin"
        succeed(uv, "venv", "-q", "--python", python, folder / "venv", folder=folder)
        # of a wheel's requirements uv takes the newest: they aren't direct ones
        lowest = ("--resolution=lowest-direct", "-r", ROOT / "setup.cfg", "--extra=serve")
        how = lowest if own.oldest else ()
        what = wheel if own.is_stock else f"recbole-escm2[serve] @ {wheel.as_uri()}"
        self.install(*how, what, *own.also, *([torch] if torch else []))

    def install(self, *what: str | Path) -> None:
        """Install further packages."""
        python = ("--python", self.bin / "python")
        succeed(self.uv, "pip", "install", "-q", *python, *what, folder=self.folder)

    def versions(self) -> str:
        """Of Python and what numbers depend on."""
        ask = (
            "import platform, sys; from importlib.metadata import version; "
            "print('Python', platform.python_version(), "
            "*(f'{name} {version(name)}' for name in sys.argv[1:]))"
        )
        return succeed(self.bin / "python", "-c", ask, *_PACKAGES, folder=self.folder).strip()


# --------------------------------------------------------------------------- what is tried


def main_job(there: Installed, folder: Path, **how: Mapping[str, str]) -> str:
    """The quick variant of the main job, in a folder; returns what it ends with."""
    folder.mkdir(parents=True, exist_ok=True)
    said = succeed(there.bin / "recbole-escm2", *_MAIN_JOB, folder=folder, **how)
    return _metric(said)


def _metric(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("CTCVR_AUC: 0.")]
    if len(lines) != 1:
        raise FailedError(f"no line 'CTCVR_AUC: 0.…' in: {said[-300:]}")
    return lines[0]


def predict(there: Installed, folder: Path) -> str:
    """New rows are scored with what the main job has trained."""
    (checkpoint,) = folder.glob("*/*/checkpoint.pth")
    (folder / "rows.csv").write_text(_ROWS, encoding="utf-8")
    options = (f"--checkpoint={checkpoint}", "--data=rows.csv", "--out=scores.csv")
    succeed(there.bin / "recbole-escm2", "predict", *options, folder=folder)
    with open(folder / "scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != 2 or not all(0 < float(row["pctcvr"]) < 1 for row in rows):
        raise FailedError(f"scores.csv holds {rows}")
    return f"{len(rows)} rows scored"


_EXPORTED = """
import csv, onnxruntime, sys
sys.path.insert(0, "exported")
from reader import Reader
rows = [*csv.DictReader(open("rows.csv", encoding="utf-8"))]
columns = {name: [row[name] for row in rows] for name in rows[0]}
model = onnxruntime.InferenceSession("exported/model.onnx")
(scores,) = model.run(["pctcvr"], Reader("exported").inputs(columns))
ours = [float(row["pctcvr"]) for row in csv.DictReader(open("scores.csv", encoding="utf-8"))]
assert len(ours) == len(scores) and max(abs(scores - ours)) < 1e-5, (ours, scores)
assert not {"recbole", "recbole_escm2", "torch"} & sys.modules.keys()
print(len(scores), "rows scored without the package")
"""


def export(there: Installed, folder: Path) -> str:
    """What the main job has trained is exported and verified, and scores rows as it does."""
    (checkpoint,) = folder.glob("*/*/checkpoint.pth")
    options = (f"--checkpoint={checkpoint}", "--out=exported")
    succeed(there.bin / "recbole-escm2", "export", *options, folder=folder)
    return succeed(there.bin / "python", "-c", _EXPORTED, folder=folder).strip()


def serve(there: Installed, folder: Path) -> str:
    """The server answers with the scores of predict."""
    (checkpoint,) = folder.glob("*/*/checkpoint.pth")
    with open(folder / "rows.csv", encoding="utf-8", newline="") as file:
        rows = [{**row, "class": [row["class"]]} for row in csv.DictReader(file)]
    with open(folder / "scores.csv", encoding="utf-8", newline="") as file:
        ours = [float(row["pctcvr"]) for row in csv.DictReader(file)]
    program = (there.bin / "recbole-escm2", "serve", f"--checkpoint={checkpoint}", "--port=0")
    with open(folder / "serve.log", "w+", encoding="utf-8") as log:
        server = subprocess.Popen(list(map(str, program)), cwd=folder, stdout=log, stderr=log)
        try:
            asked = request.Request(
                _address(server, folder / "serve.log") + "/predict",
                json.dumps({"rows": rows}).encode(),
                {"content-type": "application/json"},
            )
            with request.urlopen(asked, timeout=60) as answer:
                scores = [row["pctcvr"] for row in json.load(answer)["rows"]]
        finally:
            server.terminate()
            server.wait()
    if any(abs(a - b) > 1e-6 for a, b in zip(scores, ours, strict=True)):
        raise FailedError(f"{scores}, not {ours}")
    return f"{len(scores)} rows scored over HTTP"


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    """Where a server answers, once it has said so."""
    while server.poll() is None:
        if found := re.search(r"answers at (http://[\w.:]+)", log.read_text("utf-8")):
            return found[1]
        time.sleep(0.2)
    raise FailedError(f"the server has ended: {log.read_text('utf-8')[-300:]}")


def tests(there: Installed, folder: Path, which: Sequence[str]) -> str:
    """Tests of a copy of the checkout, of which the installed package is tested."""
    for name in (*_SOURCE, *_OF_TESTS, "run_recbole_escm2.py", "ruff.toml"):
        copy_of(ROOT / name, folder / name)
    there.install("pytest>=8", "pytest-xdist>=3", "hypothesis>=6", "jinja2>=3", "matplotlib>=3.8")
    there.install("optuna>=4.9", "lightgbm>=4")
    done = call(there.bin / "pytest", "-q", *which, folder=folder)
    (folder / "tests.log").write_text(done.stdout, encoding="utf-8")
    last = (done.stdout.strip().splitlines() or [done.stderr])[-1]
    if done.returncode:
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        raise FailedError("; ".join([last, *failed[:5]]))
    return f"{' '.join(which)}: {last}"


def stock(there: Installed, folder: Path) -> str:
    """RecBole's own quick_start with the package beside it."""
    folder.mkdir()
    shutil.copy(ROOT / "scripts" / "stock_recbole_check.py", folder / "check.py")
    said = succeed(there.bin / "python", "check.py", folder=folder)
    held = [line for line in said.splitlines() if line.startswith("ok ")]
    return f"{len(held)} facts hold"


def circumstances(there: Installed, folder: Path) -> Iterator[tuple[str, str]]:
    """The main job elsewhere than where it was written; names, and what each came to."""
    for name, do in {
        "a user who may write neither into the package nor HOME": _as_nobody,
        "in a notebook": _in_a_notebook,
        "no terminal, ASCII only (LC_ALL=C, PYTHONUTF8=0)": _in_ascii,
        "a Turkish locale": _in_turkish,
        "a folder named 'ein Ordner, 数据 é'": _in_an_odd_folder,
    }.items():
        yield name, outcome(do, there, folder / do.__name__)


def _as_nobody(there: Installed, folder: Path) -> str:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        raise FailedError("not tried: only root can become another user, with setpriv")
    home = folder / "home"
    home.mkdir(parents=True)
    work = folder / "work"
    work.mkdir()
    os.chown(work, int(_NOBODY), int(_NOBODY))
    become = ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
    program = (*become, there.bin / "python", "-m", "recbole_escm2", *_MAIN_JOB)
    elsewhere = {"HOME": str(home)}
    refused = call(*program, folder=work, environment=elsewhere)
    said = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    if refused.returncode != 2 or len(said) != 1 or "store_dir" not in said[0]:
        raise FailedError(f"no place for the store: {refused.returncode}, {said[-1:]}")
    ended = _metric(succeed(*program, "--store_dir=stores", folder=work, environment=elsewhere))
    return f"one line names store_dir; with it {ended}"


def _in_a_notebook(there: Installed, folder: Path) -> str:
    folder.mkdir()
    there.install("ipykernel", "nbclient", "nbformat")
    program = f"""
import nbclient, nbformat
options = {dict(option[2:].split("=") for option in _MAIN_JOB)!r}
model, dataset = options.pop("model"), options.pop("dataset")
cell = nbformat.v4.new_code_cell(
    "from recbole_escm2.quick_start import run\\n"
    f"done = run({{model!r}}, {{dataset!r}}, command_line={{options!r}})\\n"
    "print(f\\"CTCVR_AUC: {{done['test_result']['CTCVR_AUC']:.6f}}\\"); done"
)
book = nbformat.v4.new_notebook(cells=[cell])
nbclient.NotebookClient(book, timeout=1800, kernel_name="python3").execute()
for output in book.cells[0].outputs:
    print(output.get("text", ""))
    assert output.output_type != "execute_result" or "<table" in output.data["text/html"]
"""
    return _metric(succeed(there.bin / "python", "-c", program, folder=folder))


def _in_ascii(there: Installed, folder: Path) -> str:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return main_job(there, folder, environment=ascii_only)


def _in_turkish(there: Installed, folder: Path) -> str:
    installed = call("locale", "-a", folder=there.folder).stdout.lower()
    if "tr_tr.utf" not in installed:
        raise FailedError("not tried: no locale tr_TR.UTF-8 here")
    return main_job(there, folder, environment={"LC_ALL": "tr_TR.UTF-8"})


def _in_an_odd_folder(there: Installed, folder: Path) -> str:
    folder = folder.with_name("ein Ordner, 数据 é")
    ended = main_job(there, folder)
    predict(there, folder)
    return ended


# --------------------------------------------------------------------------- all of it


def outcome(do: object, *given: object) -> str:
    """What a check has come to: ``ok`` and its words, or what failed."""
    try:
        return f"ok: {do(*given)}"  # type: ignore[operator]
    except FailedError as error:
        said = str(error)
        return said if said.startswith("not tried") else f"FAILS: {said}"


def copy_of(source: Path, target: Path) -> None:
    """Copy a file or a folder."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "store"))
    else:
        shutil.copy(source, target)


def checks(
    name: str, folder: Path, wheel: Path, uv: Path, asked: argparse.Namespace
) -> Iterator[tuple[str, str, str]]:
    """Make an environment and try what is to be tried in it: versions, check and outcome."""
    try:
        there = Installed(name, folder, wheel, uv, asked.torch)
        versions = there.versions()
    except FailedError as error:
        said = str(error)
        yield "", "installation", said if said.startswith("not tried") else f"FAILS: {said}"
        return
    yield versions, "installation", "ok"
    if ENVIRONMENTS[name].is_stock:
        yield versions, "stock RecBole", outcome(stock, there, folder / "run")
        return
    yield versions, "main job", outcome(main_job, there, folder / "run")
    for do in (predict, export, serve):
        yield versions, do.__name__, outcome(do, there, folder / "run")
    if name == _ORDINARY:
        for check, came in circumstances(there, folder):
            yield versions, check, came
    if asked.tests:
        copy = folder / "checkout"
        copy.mkdir()
        yield versions, "tests", outcome(tests, there, copy, asked.tests.split())


def tools(folder: Path) -> tuple[Path, Path]:
    """uv, and the package's wheel, built of a copy, so that it leaves nothing in the checkout."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in _SOURCE:
        copy_of(ROOT / name, source / name)
    succeed(sys.executable, "-m", "venv", folder / "tools", folder=folder)
    pip = (folder / "tools" / "bin" / "python", "-m", "pip")
    succeed(*pip, "install", "-q", "uv", folder=folder)
    succeed(*pip, "wheel", "-q", "--no-deps", "-w", folder / "wheel", source, folder=folder)
    (wheel,) = (folder / "wheel").glob("*.whl")
    return folder / "tools" / "bin" / "uv", wheel


def _lines(file: Path) -> list[dict[str, str]]:
    """What was written before."""
    if not file.exists():
        return []
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def main() -> int:
    """Print and write what each environment has come to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(ENVIRONMENTS), help="names, with commas")
    parser.add_argument("--tests", default="tests", help="files and folders; none: no tests")
    parser.add_argument("--torch", help="a requirement, such as torch==2.13.0")
    parser.add_argument("--work", type=Path, help="a new folder to make and keep everything in")
    parser.add_argument("--file", type=Path, default=FILE, help="where the outcomes go")
    asked = parser.parse_args()
    names = asked.only.split(",")
    lines = [line for line in _lines(asked.file) if line["environment"] not in names]
    with contextlib.ExitStack() as stack:
        kept = asked.work and asked.work.absolute()
        work = kept or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="environments-"))
        )
        work.mkdir(exist_ok=True)
        work.chmod(0o755)  # a user who isn't root comes in
        uv, wheel = tools(work / "built")
        for name in names:
            for versions, check, came in checks(name, work / name, wheel, uv, asked):
                lines.append(dict(zip(COLUMNS, (name, versions, check, came), strict=True)))
                print(f"{name}  {check}: {came}  {versions}", flush=True)
                asked.file.parent.mkdir(parents=True, exist_ok=True)
                with open(asked.file, "w", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(lines)
            if not kept:
                shutil.rmtree(work / name, ignore_errors=True)
    own = [line for line in lines if line["environment"] in names]
    return int(any(line["outcome"].startswith("FAILS") for line in own))


if __name__ == "__main__":
    sys.exit(main())
