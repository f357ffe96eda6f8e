"""Parts of the program that take packages which training doesn't need."""

from __future__ import annotations

from importlib.util import find_spec

from recbole_escm2.errors import UsageError

#: Modules that each extra of setup.cfg brings.
EXTRAS = {
    "benchmark": ("jinja2", "matplotlib", "optuna"),
    "search": ("optuna",),
}


def require(extra: str) -> None:
    """Make sure that what an extra brings is installed, before anything runs.

    Raises:
        UsageError: something is missing; the message has the command that installs it.
    """
    missing = [module for module in EXTRAS[extra] if find_spec(module) is None]
    if missing:
        raise UsageError(
            f"a {extra} needs {', '.join(missing)}, which isn't installed: "
            f"pip install 'recbole-escm2[{extra}]'"
        )
