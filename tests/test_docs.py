"""What the README and the pages of docs/ show works as it is printed."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from recbole_escm2.command_line import main
from recbole_escm2.data import save_table
from recbole_escm2.quick_start import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (
        ROOT / "README.md",
        ROOT / "results" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
PROGRAM = "python run_recbole_escm2.py "
#: Every command of the pages with what makes it quick; None where another test runs it.
COMMANDS: dict[str, dict[str, str] | None] = {
    "--model=ESCM2_DR --dataset=ml-100k": {"impression_sample": "0.02", "epochs": "1"},
    "--model=ESCM2_DR --dataset=ali-ccp-sim": {
        "simulation": "{rows: 4000, click_rate: 0.3, conversion_rate: 0.5}",
        "epochs": "1",
    },
    "--model=ESCM2_DR --dataset=coat": None,  # tests/data: it takes the raw files
    "--model=ESCM2_DR --dataset=ali-ccp": None,  # tests/data: it takes the raw files
    "--model=crm:ESCM2_CRM --dataset=ml-100k --variance_weight=0.3": None,  # below
    "--model=ESMM,ESCM2_IPS,ESCM2_DR,DCMT,Naive,DeepFM,crm:ESCM2_CRM --dataset=ml-100k "
    "--impression_sample=0.1 --seeds=5 --trials=3 --jobs=2": None,  # below
    "--model=ESMM,ESCM2_IPS,ESCM2_DR,DeepFM --dataset=ml-100k --seeds=10 --jobs=2": {
        "seeds": "2",
        "impression_sample": "0.02",
        "epochs": "1",
    },
    "--model=ESCM2_IPS,ESCM2_DR --dataset=ml-100k --seeds=5 "
    "--counterfactual_weight=0,0.03,0.1,0.3,1": {
        "seeds": "1",
        "counterfactual_weight": "0,0.1",
        "impression_sample": "0.02",
        "epochs": "1",
    },
    "--benchmark=scripts/results/leaderboard.yaml --dataset=ml-100k "
    "--config_files=scripts/results/ml-100k.yaml --model=crm:ESCM2_CRM --baseline=crm:ESCM2_CRM "
    "--screen=None --pruner=halving --aa_row=False --name=mine": None,  # tests/experiment
    "search --model=ESCM2_DR --dataset=ml-100k --trials=20 --jobs=2": {
        "trials": "2",
        "impression_sample": "0.02",
        "epochs": "1",
    },
    "score --labels=labels.parquet --predictions=mine.parquet,theirs.csv --key=row "
    "--out=scores": None,  # tests/scoring
    "--model=ESMM --dataset=ml-100k --metrics=mine:hit_rate,CTR_AUC "
    "--valid_metric=mine:hit_rate": None,  # tests/scoring
    "--model=ESMM --dataset=ml-100k --valid_metric=0.7*CTCVR_AUC+0.3*CTR_AUC": {
        "impression_sample": "0.02",
        "epochs": "1",
    },
    "simulate --rows=1000000 --out=dataset/ali-ccp/raw": {"rows": "2000"},
    "--model=ESCM2_DR --dataset=ml-100k --save_interval=5": {
        "impression_sample": "0.02",
        "epochs": "1",
    },
    "--model=ESCM2_DR --dataset=ml-100k --final_fit=True": {
        "impression_sample": "0.02",
        "epochs": "1",
    },
    "--model=ESCM2_DR --dataset=ml-100k --init_from=output/…": None,  # below: it takes a run
    "predict --checkpoint=output/… --data=new.parquet --out=scores.parquet "
    "--columns=user_id,item_id": None,  # below
    "serve --checkpoint=output/… --port=8080 --watch": None,  # tests/serve/test_http_process.py
    "export --checkpoint=output/… --out=artefact --verify": None,  # tests/export
    "--model=ESCM2_DR --dataset=ml-100k --impression_sample=0.1": None,  # there, too
    "recommend --checkpoint=output/… --users=users.parquet --items=items.parquet --seen=seen.csv "
    "--k=10 --out=best.parquet": None,  # below
    "--model=ESCM2_DR --dataset=ml-100k --by=item_popularity,pctr:5": {
        "impression_sample": "0.02",
        "epochs": "1",
    },
    "--model=ESCM2_IPS --dataset=ml-100k --save_predictions=True": None,  # below
    # below, on a log that has what they name
    **dict.fromkeys(
        re.findall(r"run_recbole_escm2\.py (.*--dataset=mine .+)", PAGES["docs/data.md"])
    ),
    "--checkpoint=output/…/checkpoint.pth --evaluate": None,  # tests/train: it takes a checkpoint
}


def test_every_command_of_the_pages_is_tried():
    shown = [
        command
        for text in PAGES.values()
        for command in re.findall(rf"{re.escape(PROGRAM)}([^`\n]+)", text)
    ]
    assert sorted(set(shown)) == sorted(COMMANDS)


@pytest.mark.parametrize("command", [shown for shown, quick in COMMANDS.items() if quick])
def test_a_command_of_the_pages_runs(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = dict(COMMANDS[command])
    words = []
    for word in command.split():
        key = word.removeprefix("--").partition("=")[0]
        words.append(f"--{key}={quick.pop(key)}" if key in quick else word)
    assert main([*words, *(f"--{key}={value}" for key, value in quick.items())]) == 0


def test_two_processes_print_one_table_that_of_one(tmp_path, metrics_of):
    ours = r"torchrun (--nproc_per_node=2) run_recbole_escm2\.py (--\S+ --\S+)$"
    ((processes, options),) = set(re.findall(ours, "".join(PAGES.values()), re.MULTILINE))
    quick = ["--simulation={rows: 20000, click_rate: 0.3, conversion_rate: 0.5}", "--epochs=2"]
    one, two = (
        subprocess.run(
            [sys.executable, *start, ROOT / "run_recbole_escm2.py", *options.split(), *quick],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
        )
        for start in ([], ["-m", "torch.distributed.run", "--standalone", processes])
    )
    assert one.returncode == two.returncode == 0, two.stderr
    assert two.stdout.count("Test metrics") == 1
    alone, shared = metrics_of(one.stdout), metrics_of(two.stdout)
    # Whom it matches is decided by the last digits of pCTR.
    assert shared.pop("PIP") == pytest.approx(alone.pop("PIP"), abs=0.02)
    assert shared == pytest.approx(alone, abs=0.001)
    tables = [re.sub(r"-?\d+\.\d+", "", done.stdout) for done in (one, two)]
    assert re.sub(" +", " ", tables[0]) == re.sub(" +", " ", tables[1])
    assert two.stderr.count("best epoch") == one.stderr.count("best epoch") == 1


def test_training_begins_with_a_run_as_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    printed = "--model=ESCM2_DR --dataset=ml-100k --init_from=output/…"
    quick = ["--impression_sample=0.02", "--epochs=1"]
    assert main([*printed.split()[:2], *quick]) == 0
    (folder,) = tmp_path.glob("output/*")
    assert main([*printed.replace("output/…", str(folder)).split(), *quick]) == 0
    assert f"beginning with the weights of {folder}/checkpoint.pth" in capfd.readouterr().err


LOG_COMMANDS = [command for command in COMMANDS if "--dataset=mine " in command]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A data path with a log ``mine`` of two months, with events, values and times."""
    rng, rows = np.random.default_rng(0), 3000
    click = rng.random(rows) < 0.4
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(60, size=rows),
            "item_id": rng.integers(20, size=rows),
            "timestamp": pd.Timestamp("2020-02-01") + pd.to_timedelta(rng.random(rows) * 59, "D"),
            "value": rng.integers(1, 5, rows) / 2,
            "click": click,
            "cart": click & (rng.random(rows) < 0.5),
            "conversion": click & (rng.random(rows) < 0.4),
        }
    )
    folder = tmp_path_factory.mktemp("log")
    save_table(frame, "mine", folder)
    return folder


def test_the_page_of_data_has_commands_for_a_log():
    assert len(LOG_COMMANDS) == 10


@pytest.mark.parametrize("command", LOG_COMMANDS)
def test_a_command_on_a_log_runs_as_printed(command, log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    words = ["--seeds=2" if word.startswith("--seeds=") else word for word in words]
    quick = [] if any(word.startswith("--epochs=") for word in words) else ["--epochs=1"]
    assert main([*words, *quick, f"--data_path={log}"]) == 0


@pytest.fixture
def variant() -> str:
    (code,) = re.findall(r"<!-- variant.*?-->\n```python\n(.+?)```", README, re.DOTALL)
    return code


def test_the_variant_is_short(variant):
    assert len(variant.splitlines()) <= 20


def test_the_variant_runs_as_printed(variant, program, tmp_path):
    (tmp_path / "crm.py").write_text(variant)
    (command,) = re.findall(r"run_recbole_escm2\.py (--model=crm:.+)", README)
    done = program(*command.split(), "--impression_sample=0.03", "--epochs=1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^CTCVR_AUC: 0\.\d+$", done.stdout, re.MULTILINE)


def test_the_variant_stands_in_a_table_as_printed(variant, program, tmp_path):
    (tmp_path / "crm.py").write_text(variant)
    ((name, line),) = re.findall(r"`(\w+\.hyper)` beside `crm.py`, of the one line `(.+?)`", README)
    (tmp_path / name).write_text(line + "\n")
    (command,) = re.findall(r"run_recbole_escm2\.py (--model=.+,crm:.+)", README)
    for printed, quick in (("seeds=5", "seeds=2"), ("trials=3", "trials=2"), ("=0.1", "=0.02")):
        assert printed in command
        command = command.replace(printed, quick)
    done = program(*command.split(), "--epochs=1")
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("output/benchmark-*/report.json")
    content = json.loads(report.read_text())
    assert len(content["rows"]) == 7 + 1  # ESMM again: the A/A row
    (mine,) = (row for row in content["rows"] if row["label"] == "crm:ESCM2_CRM")
    assert mine["metrics"]["CTCVR_AUC"]["low"] < mine["metrics"]["CTCVR_AUC"]["high"]
    assert mine["metrics"]["CTCVR_AUC"]["verdict"] in ("better", "worse", "undecided")
    _, tried = content["tuning"]["by_row"]["crm:ESCM2_CRM"]
    assert 0.018 < tried["chosen"]["variance_weight"] < 1


def test_a_table_in_memory_trains_as_printed(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.+?save_table.+?)```", PAGES["docs/data.md"], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    click = rng.random(2000) < 0.3
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(30, size=2000),
            "item_id": rng.integers(20, size=2000),
            "click": click,
            "conversion": click & (rng.random(2000) < 0.4),
        }
    )
    exec(compile(code, "docs/data.md", "exec"), {"frame": frame})
    (result,) = tmp_path.glob("output/ESMM-mine-*/result.json")
    assert 0 < json.loads(result.read_text())["test_result"]["CTCVR_AUC"] < 1


def test_new_rows_are_scored_as_printed(tmp_path, monkeypatch):
    """A model of ml-100k, and rows with users that it doesn't know."""
    monkeypatch.chdir(tmp_path)
    run("ESCM2_DR", "ml-100k", config_dict={"impression_sample": 0.02, "epochs": 1})
    (folder,) = tmp_path.glob("output/*")
    code, of_table = re.findall(r"```python\n(.+?)```", PAGES["docs/predict.md"], re.DOTALL)
    code = code.replace("output/ESCM2_DR-…", str(folder))
    rng = np.random.default_rng(0)
    features = {"age": 30, "gender": "M", "occupation": "other", "zip_code": "94043"}
    features |= {"release_year": 1995, "class": "Drama Comedy", "movie_title": "Toy Story"}
    ids = {name: rng.integers(1, 1200, 500).astype(str) for name in ("user_id", "item_id")}
    frame = pd.DataFrame({**ids, **features})
    frame.to_parquet("new.parquet")
    click = rng.random(len(frame)) < 0.4
    labels = {"click": click, "conversion": click & (rng.random(len(frame)) < 0.5)}
    names: dict = {"frame": frame, "logged": frame.assign(**labels)}
    exec(
        compile(of_table.replace("import run", "import run\nimport recbole_escm2"), "", "exec"),
        names,
    )
    assert names["scores"].shape == (500, 3)
    exec(compile(code, "docs/predict.md", "exec"), names)
    known = json.loads((folder / "result.json").read_text())["data"]
    assert known["train"]["impressions"] > 0
    assert names["scorer"].unknown["user_id"] == (frame["user_id"].astype(int) > 943).sum()
    users, items = ["user_id", "age", "gender", "occupation", "zip_code"], [*features][-3:]
    frame[users].drop_duplicates("user_id").to_parquet("users.parquet")
    frame[["item_id", *items]].drop_duplicates("item_id").to_parquet("items.parquet")
    frame[["user_id", "item_id"]].to_csv("seen.csv", index=False)
    for command in (shown for shown in COMMANDS if shown.startswith(("predict ", "recommend "))):
        assert main(command.replace("output/…", str(folder)).split()) == 0
    scores = pd.read_parquet("scores.parquet")
    assert list(scores) == ["user_id", "item_id", "pctr", "pcvr", "pctcvr", "support"]
    assert np.array_equal(scores["pctcvr"], names["scores"]["pctcvr"])
    best = pd.read_parquet("best.parquet")
    assert (best.groupby("user_id").size() == 10).all()
    assert best.merge(frame, on=["user_id", "item_id"]).empty


def test_kept_predictions_are_read_as_printed(tmp_path, monkeypatch, capsys):
    (command, code) = re.findall(
        r"```bash\npython run_recbole_escm2.py (\S+ \S+ --save_predictions=True)\n```\n\n"
        r"```python\n(.+?)```",
        PAGES["docs/metrics.md"],
        re.DOTALL,
    )[0]
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--impression_sample=0.02", "--epochs=1"]) == 0
    capsys.readouterr()
    exec(compile(code, "docs/metrics.md", "exec"), {})
    assert "pctcvr" in capsys.readouterr().out


def test_a_notebook_runs_as_printed(tmp_path, monkeypatch):
    (code,) = re.findall(
        r"<!-- notebook.*?-->\n```python\n(.+?)```", PAGES["docs/benchmarks.md"], re.DOTALL
    )
    quick = '"impression_sample": 0.02, "epochs": 1, '
    code = code.replace('config_dict={"by"', f'config_dict={{{quick}"by"')
    code = code.replace("seeds=3, jobs=2", "seeds=2, jobs=2, impression_sample=0.02, epochs=1")
    assert code.count("epochs") == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json", "--epochs=0"])
    names: dict = {}
    exec(compile(code, "docs/benchmarks.md", "exec"), names)
    assert len(names["outcome"].predictions) > 1000
    assert {"ESMM", "ESCM2_IPS"} < set(names["study"].table.index)  # and the A/A row
    assert "<table" in names["study"]._repr_html_()
    assert (tmp_path / "ctcvr.png").stat().st_size > 1000


def test_the_leaderboard_is_what_the_tables_say():
    checked = subprocess.run(
        [sys.executable, "scripts/leaderboard.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_leaderboard_with_truth_has_the_same_rows_and_the_true_probabilities():
    folder = ROOT / "scripts" / "results"
    plain, with_truth = (
        yaml.safe_load((folder / name).read_text(encoding="utf-8"))
        for name in ("leaderboard.yaml", "leaderboard-truth.yaml")
    )
    assert with_truth["models"].pop("Oracle", "missing") is None
    assert with_truth == plain
    assert list(with_truth["models"]) == list(plain["models"])


def test_the_variant_runs_as_a_class(variant, settings):
    names: dict = {}
    exec(compile(variant, "crm.py", "exec"), names)
    outcome = run(names["ESCM2_CRM"], "tiny", config_dict=settings, saved=False)
    assert 0 < outcome["test_result"]["CTCVR_AUC"] < 1


def test_the_test_command_is_the_one_that_continuous_integration_runs():
    (command,) = re.findall(r"^(pip install -e '\.\[test\]' && pytest)$", README, re.MULTILINE)
    assert command.replace("install", "install --quiet") in (ROOT / ".ci" / "run").read_text()


def _anchors(text):
    """The anchors that a page's headings have."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_relative_links_lead_somewhere(name):
    for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", PAGES[name]):
        target = (ROOT / name).parent / link if link else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target.read_text(encoding="utf-8")), f"{link}#{anchor}"


def test_every_page_is_linked_from_the_front_page():
    linked = set(re.findall(r"\]\((?!http)([^)#]+)\)", README))
    assert {*PAGES} - linked == {"README.md"}
