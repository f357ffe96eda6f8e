"""What code a run's numbers come from, as a digest that comments and formatting don't change."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import recbole_escm2
from recbole_escm2.metric_names import own_names

_PACKAGE = Path(recbole_escm2.__file__).parent
# Modules of the package that no number of a run depends on.
_AROUND = (
    *("experiment", "report", "serve", "export", "scoring"),
    *("__main__.py", "command_line.py", "plugin.py"),
)


def code_of(model: type, metrics: Iterable[str] = ()) -> str:
    """The digest of this package and, for a model and metrics of the user's own, of their files.

    Args:
        model: the model's class.
        metrics: names of metrics, those of functions of loaded modules among them.
    """
    files = _own_files(_modules_of(model, metrics))
    known = [_digest_of_package(), *sorted(_digest(file) for file in files)]
    return hashlib.sha256(" ".join(known).encode()).hexdigest()[:16]


def is_code_known(model: type, metrics: Iterable[str] = ()) -> bool:
    """Whether a change of it would be noticed: not of what is made in a notebook.

    Args:
        model: as in :func:`code_of`.
        metrics: likewise.
    """
    modules = (sys.modules.get(name) for name in _modules_of(model, metrics) - {"builtins"})
    return all(getattr(module, "__file__", None) for module in modules)


def _modules_of(model: type, metrics: Iterable[str]) -> set[str]:
    """Names of the modules in which a model and metrics of the user's own are written."""
    modules = {part.__module__ for part in model.__mro__}
    return modules | {name.partition(":")[0] for one in metrics for name in own_names(one)}


@lru_cache(maxsize=1)
def _digest_of_package() -> str:
    """Read once: a process goes on with the code that it has imported."""
    files = [
        file
        for file in sorted(_PACKAGE.rglob("*.py"))
        if file.relative_to(_PACKAGE).parts[0] not in _AROUND
    ]
    return hashlib.sha256(" ".join(map(_digest, files)).encode()).hexdigest()


def _own_files(names: Collection[str]) -> set[Path]:
    """The files of a user's modules, and what they import from their folders."""
    released = ("builtins", "recbole", "recbole_escm2", "torch")  # known by their versions
    todo = [sys.modules[name] for name in names if name.partition(".")[0] not in released]
    folders = {file.parent for module in todo if (file := _file_of(module))}
    files: set[Path] = set()
    while todo:
        module = todo.pop()
        file = _file_of(module)
        if file is None or file in files or not folders & {*file.parents}:
            continue
        files.add(file)
        modules = (sys.modules.get(name) for name in _imported(file, module.__package__ or ""))
        todo += [imported for imported in modules if imported is not None]
    return files


def _file_of(module: ModuleType) -> Path | None:
    """Where a module's source is; None for what is installed or compiled."""
    source = Path(getattr(module, "__file__", None) or "")
    if source.suffix != ".py" or not source.is_file() or "site-packages" in source.parts:
        return None
    return source.resolve()


def _imported(file: Path, package: str) -> Iterator[str]:
    """Names of the modules that a file's import statements may mean."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else ()), *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _digest(file: Path) -> str:
    tree = ast.parse(file.read_bytes())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Expr(ast.Constant(""))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
