"""The rooms of docs/architecture.md are those of the package, and import what it says."""

import ast
import re
from pathlib import Path

from recbole_escm2.train.code import _AROUND

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "recbole_escm2"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
#: What each room may import, in the order of the page.
ROOMS = {
    room: set(re.findall(r"`(\w+)`", imports))
    for room, imports in re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", PAGE, re.MULTILINE)
}


def room_of(module: str) -> str | None:
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == PACKAGE.name else None


def imports() -> set[tuple[str, str]]:
    """Pairs of a file's room and a room that it imports, wherever in the file."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: imports are absolute"
                whole = node.module == PACKAGE.name
                names = [f"{node.module}.{a.name}" for a in node.names] if whole else [node.module]
            else:
                continue
            found.update((room_of(module) or "", room_of(name)) for name in names)
    return {(own, other) for own, other in found if other and own not in ("", "__main__", other)}


def test_every_room_is_on_the_page():
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {name for name in modules if not name.startswith("_")} == set(ROOMS)


def test_rooms_import_what_the_page_says():
    allowed = {(room, other) for room, others in ROOMS.items() for other in others}
    package = {"__version__"}
    assert {pair for pair in imports() if pair[1] not in package} - allowed == set()


def test_the_page_lists_no_import_that_isnt_there():
    listed = {(room, other) for room, others in ROOMS.items() for other in others}
    assert listed - imports() == set()


def test_imports_point_upwards_on_the_page():
    order = list(ROOMS)
    wrong = [
        (room, other)
        for room, others in ROOMS.items()
        for other in others
        if order.index(other) >= order.index(room)
    ]
    assert wrong == []


def test_the_code_of_a_run_is_that_of_the_rooms_that_it_takes():
    """A change of any other one, of what scores new rows for example, has no run done again."""
    taken, waiting = set(), {"quick_start"}
    while waiting:
        taken |= waiting
        waiting = {other for room in waiting for other in ROOMS[room]} - taken
    around = {name.removesuffix(".py") for name in _AROUND} - {"__main__"}
    assert taken == set(ROOMS) - around


def test_no_function_is_longer_than_60_lines_or_has_more_than_7_parameters():
    """ONNX's stand-in for torch's kernel has the parameters of torch."""
    too_much = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                own = node.args
                names = [a.arg for a in (*own.posonlyargs, *own.args, *own.kwonlyargs)]
                parameters = len({*names} - {"self", "cls"}) + sum(
                    a is not None for a in (own.vararg, own.kwarg)
                )
                if lines > 60 or parameters > 7:
                    too_much[node.name] = lines, parameters
    assert [*too_much] == ["_embedding_bag"]
