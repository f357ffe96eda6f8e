"""Makes results/reliability.md of the figures in results/reliability/.

python scripts/reliability.py
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from long_runs import series

from recbole_escm2.output import write_whole

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "reliability"
PAGE = ROOT / "results" / "reliability.md"
_HEAD = """\
# Reliability

The figures behind [the guarantees](../docs/guarantees.md), each with the command that makes them
anew. This page is made by `python scripts/reliability.py` of the CSV files in
[`reliability/`](reliability).
"""


def lines_of(name: str) -> list[dict[str, str]]:
    """The lines of a CSV file of the folder."""
    with open(FOLDER / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; all columns but the first are numbers."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def kills() -> str:
    """Commands that SIGKILL ends, and what the same command then comes to."""
    lines = lines_of("kills")
    own = ("phase", "kills", "before_rename", "of_workers", "ends", "differing", "orphans")
    header = (
        *("phase", "kills", "of these before a rename", "of these of its workers", "ends compared"),
        *("that differed or had a file too many", "processes left over"),
    )
    table = markdown(header, [[line[name] for name in own] for line in lines])
    return (
        "## Kills\n\n`python scripts/kills.py` (these figures: `--kills=15`, a search "
        "`--kills=5`, with the code as it was before the guarantee of a killed search): SIGKILL at "
        "random moments over the measured length of each phase, and right before a file or folder "
        "that is whole gets its name; of a search and a benchmark also one of the processes that "
        "they start. The same command then goes on or begins anew; where it ends, every file but "
        f"for times is compared with those of an undisturbed command.\n\n{table}\n"
    )


def kills_distributed() -> str:
    """Runs of several processes, one of which SIGKILL ends."""
    own = ("processes", "kills", "ends", "differences")
    header = ("processes", "kills", "ends compared", "numbers and tensors that differed")
    table = markdown(
        header, [[line[name] for name in own] for line in lines_of("kills_distributed")]
    )
    return (
        "## Kills of one process of several\n\n`python scripts/kills_distributed.py`: SIGKILL of a "
        "random one at random moments of a training under `torchrun --max-restarts`, which starts "
        "all of them anew; its end is compared with that of an undisturbed one, metrics, history "
        f"and each tensor of the checkpoints.\n\n{table}\n"
    )


def full_disks() -> str:
    """Commands whose disk is full, and what the same command comes to with room again."""
    own = ("phase", "tries", "refused", "content", "unclear", "differing")
    header = (
        *("phase", "tries", "refused in one line", "content with the room", "anything else"),
        "with room again not as undisturbed",
    )
    table = markdown(header, [[line[name] for name in own] for line in lines_of("full_disks")])
    return (
        "## Full disks\n\n`python scripts/full_disks.py`: each phase on a disk that has a random "
        f"share of the room that it needs, and then enough.\n\n{table}\n"
    )


def long_runs() -> str:
    """Many runs in one process, and one of many epochs."""
    shown = [
        (
            *(f"{one.count:,} {one.of}s: {one.figure}", f"{one.median:.4g}", f"{one.most:.4g}"),
            *(f"{one.growth:+.3g}", "flat" if one.is_flat else "grows"),
        )
        for one in series(lines_of("long_runs"))
    ]
    table = markdown(("series", "median", "most", "growth over all", ""), shown)
    return (
        "## Long runs\n\n`python scripts/long_runs.py`: runs one after another in one process and "
        "one folder, then one run of many epochs, with small data. Growth is Theil and Sen's slope "
        "times the number of runs, the first tenth left out; flat is at most two handles, 5% of "
        f"the median of memory, or 10% of that of CPU time.\n\n{table}\n"
    )


def fuzz() -> str:
    """Generated faults in what is read."""
    lines = lines_of("fuzz")
    own = ("kind", "cases", "refused", "read", "compared", "crash", "hang", "write", "difference")
    table = markdown(own, [[line[name] for name in own] for line in lines])
    return (
        "## Generated bad input\n\n`python scripts/fuzz.py`: files that are flipped, cut, swapped "
        "and repeated; each is refused in one line or read. Where a simple reference reader "
        f"exists, what was read is compared with it.\n\n{table}\n"
    )


def server() -> str:
    """Damaged requests to a server."""
    lines = lines_of("server")
    own = ("minutes", "requests", "scored", "refused", "closed", "crash", "hang", "garbage")
    own += ("difference", "memory_mib", "memory_growth_mib")
    table = markdown(own, [[line[name] for name in own] for line in lines])
    return (
        "## A server under damaged requests\n\n`python scripts/fuzz_server.py`: bodies, heads, "
        "chunks and places that are flipped, cut, swapped and repeated, by four clients at once; "
        "a head that isn't whole is closed. Memory is the median of the last third of the time, "
        f"its growth that since the second.\n\n{table}\n"
    )


def environments() -> str:
    """The wheel in new environments."""
    rows = [
        [f"{line['environment']}: {line['check']}", line["outcome"].replace("|", "/")]
        for line in lines_of("environments")
    ]
    versions = {line["environment"]: line["versions"] for line in lines_of("environments")}
    named = "\n".join(f"- {name}: {said}" for name, said in versions.items() if said)
    table = markdown(("environment and check", "outcome"), rows).replace("--:", "---")
    return (
        "## Environments\n\n`python scripts/environments.py`: the wheel in new environments, "
        f"without a checkout.\n\n{table}\n\n{named}\n"
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "kills": kills,
    "kills_distributed": kills_distributed,
    "full_disks": full_disks,
    "long_runs": long_runs,
    "fuzz": fuzz,
    "server": server,
    "environments": environments,
}


def page() -> str:
    """The page, of those figures that there are."""
    there = [make for name, make in SECTIONS.items() if (FOLDER / f"{name}.csv").exists()]
    return "\n".join([_HEAD, *(make() for make in there)])


if __name__ == "__main__":
    write_whole(PAGE, page())
