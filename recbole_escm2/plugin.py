"""The only file that writes into RecBole: makes its name look-ups find what is here.

Neither RecBole nor torch is loaded for it. What RecBole has loaded already is served at once, the
rest when RecBole loads it, and our own modules when one of our names is looked up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recbole_escm2.errors import UsageError
from recbole_escm2.model_names import CONTEXT_PACKAGE, MODEL_NAMES

if TYPE_CHECKING:
    from recbole_escm2.model import EntireSpaceRecommender

_LARGEST_NAMED_K = 100  # RecBole looks names up literally, so X@10 needs an entry of its own


def register_model(model: type[EntireSpaceRecommender]) -> type[EntireSpaceRecommender]:
    """Let stock RecBole find a model by its class name, with our data set and trainer.

    Usable as a decorator; doing it twice is harmless.

    Args:
        model: the class.

    Returns:
        The class.
    """
    import recbole.data.dataset
    import recbole.trainer

    from recbole_escm2.data import EntireSpaceDataset
    from recbole_escm2.train.trainer import EntireSpaceTrainer

    name = f"{CONTEXT_PACKAGE}.{model.__name__.lower()}"
    # A module of its own: RecBole's look-up needs a spec, which a script or a notebook hasn't.
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    setattr(module, model.__name__, model)
    sys.modules[name] = module
    setattr(recbole.data.dataset, f"{model.__name__}Dataset", EntireSpaceDataset)
    setattr(recbole.trainer, f"{model.__name__}Trainer", EntireSpaceTrainer)
    return model


class _ModelLoader(Loader):
    """Makes the module in which RecBole looks for a model of ours."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        import recbole_escm2.model

        stem = module.__name__.rpartition(".")[2]
        (name,) = (name for name in MODEL_NAMES if name.lower() == stem)
        setattr(module, name, getattr(recbole_escm2.model, name))


def _serve_classes(module: ModuleType) -> None:
    """Let RecBole find ``MODELDataset`` and ``MODELTrainer``, which it reads from a module."""

    def class_of(name: str) -> Any:
        if name.removesuffix("Dataset") in MODEL_NAMES and module.__name__ == _DATASETS:
            from recbole_escm2.data import EntireSpaceDataset

            return EntireSpaceDataset
        if name.removesuffix("Trainer") in MODEL_NAMES and module.__name__ == _TRAINERS:
            from recbole_escm2.train.trainer import EntireSpaceTrainer

            return EntireSpaceTrainer
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    module.__getattr__ = class_of  # type: ignore[method-assign]


def _complete_configs(module: ModuleType) -> None:
    """Let our data set give RecBole's own config our defaults: RecBole never looks into them."""

    def complete(config: Any) -> None:
        from recbole_escm2.config import complete as complete_with_ours

        complete_with_ours(config)

    module.EntireSpaceDataset.complete_config = staticmethod(complete)


def _enter_metrics(register: ModuleType) -> None:
    """Enter our metrics in RecBole's register; doing it twice is harmless."""
    from recbole_escm2.evaluator.catalogue import SPECS
    from recbole_escm2.metric_names import ALSO_CALLED

    for other, key in ALSO_CALLED.items():
        _enter(register, other, SPECS[key], "K")
    for key, spec in SPECS.items():
        stem, at, _ = key.partition("@")
        if not at:
            _enter(register, key, spec, "K")
            continue
        if stem not in SPECS:
            _enter(register, stem, spec, "K")  # CTR_NDCG is CTR_NDCG@K
        for cut in ("K", *map(str, range(1, _LARGEST_NAMED_K + 1))):
            _enter(register, f"{stem}@{cut.lower()}", spec, cut)


def _enter(register: ModuleType, key: str, spec: Any, cut: str) -> None:
    from recbole.utils import EvaluatorType

    from recbole_escm2.evaluator.catalogue import PREDICTIONS

    def metric(config: Any) -> Any:
        from recbole_escm2.evaluator.recbole_metric import metric_class

        return metric_class(spec, cut)(config)

    register.metrics_dict.setdefault(key, metric)
    register.metric_types[key] = EvaluatorType.VALUE
    register.metric_information[key] = (PREDICTIONS,)
    if spec.judged_smaller and key not in register.smaller_metrics:
        register.smaller_metrics.append(key)


def _explain_checkpoints(module: ModuleType) -> None:
    """Say so where RecBole's ``load_data_and_model`` is given a checkpoint of ours, in which it
    looks for a whole config object."""
    load = module.load_data_and_model

    @wraps(load)
    def load_data_and_model(model_file: str) -> Any:
        from recbole_escm2.train.checkpoint import is_sealed

        if is_sealed(model_file):
            raise UsageError(
                f"{model_file} is a checkpoint of recbole_escm2, which holds no objects for "
                "RecBole's load_data_and_model: recbole_escm2.load(PATH) makes its model, and "
                "recbole_escm2.quick_start.evaluate_checkpoint(PATH) scores it on its test data"
            )
        return load(model_file)

    module.load_data_and_model = load_data_and_model  # type: ignore[attr-defined]


_MODEL_MODULES = {f"{CONTEXT_PACKAGE}.{name.lower()}" for name in MODEL_NAMES}
_DATASETS, _TRAINERS = "recbole.data.dataset", "recbole.trainer"
_WHEN_LOADED: dict[str, Callable[[ModuleType], None]] = {
    _DATASETS: _serve_classes,
    _TRAINERS: _serve_classes,
    "recbole.evaluator.register": _enter_metrics,
    "recbole.quick_start.quick_start": _explain_checkpoints,
    "recbole_escm2.data.dataset": _complete_configs,
}


class _Finder(MetaPathFinder):
    """Finds our models where RecBole looks for its own, and waits for what it has to enter them in.

    Stands first among the finders, since it has to see RecBole's modules before they are loaded.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in _MODEL_MODULES:
            return ModuleSpec(fullname, _ModelLoader())
        if fullname not in _WHEN_LOADED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            load, enter = spec.loader.exec_module, _WHEN_LOADED[fullname]

            def load_and_enter(module: ModuleType) -> None:
                load(module)
                enter(module)

            spec.loader.exec_module = load_and_enter  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Let RecBole find all models and metrics, now or when it is loaded; twice is harmless."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name, enter in _WHEN_LOADED.items():
        if name in sys.modules:
            enter(sys.modules[name])
