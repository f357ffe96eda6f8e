"""Parts of the program that take packages which training doesn't need."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from recbole_escm2.errors import UsageError

#: Those of the extra ``serve`` that a server takes.
SERVER = ("fastapi", "orjson", "prometheus_client", "uvicorn")
#: Modules that each extra of setup.cfg brings.
EXTRAS = {
    "benchmark": ("jinja2", "matplotlib", "optuna"),
    "search": ("optuna",),
    "serve": (*SERVER, "onnx", "onnxscript", "onnxruntime"),
    "torchrec": ("fbgemm_gpu", "torchrec"),
    "tree": ("lightgbm",),
}
#: The extra that a model needs.
OF_MODELS = {"LightGBM": "tree"}


def require(extra: str, of: str = "", modules: Sequence[str] = ()) -> None:
    """Make sure that what an extra brings is installed, before anything runs.

    Args:
        extra: one of :data:`EXTRAS`.
        of: what needs it; by default it is called as the extra.
        modules: those of it that are needed; all by default.

    Raises:
        UsageError: something is missing; the message has the command that installs it.
    """
    missing = [module for module in modules or EXTRAS[extra] if find_spec(module) is None]
    if missing:
        raise UsageError(
            f"{of or f'a {extra}'} needs {', '.join(missing)}, which isn't installed: "
            f"pip install 'recbole-escm2[{extra}]'"
        )
