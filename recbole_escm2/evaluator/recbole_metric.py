"""The metrics of the catalogue under RecBole's interface."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recbole.evaluator.base_metric import AbstractMetric
from recbole.utils import EvaluatorType

from recbole_escm2.evaluator.catalogue import PREDICTIONS, MetricSpec, Setting
from recbole_escm2.metric_names import TOP_K, expand


class EntireSpaceMetric(AbstractMetric):
    """A metric of this catalogue under RecBole's interface; values are never rounded."""

    metric_type = EvaluatorType.VALUE
    metric_need: tuple[str, ...] = (PREDICTIONS,)
    spec: MetricSpec
    cut = ""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.setting = Setting.of(config)
        name = self.spec.name.replace(TOP_K, f"@{self.cut}")
        self.names = expand([name], config["topk"] or [10])

    def calculate_metric(self, dataobject: Any) -> dict[str, float]:
        """The values by shown name: one, or one for every K.

        Raises:
            ValueError: the run's collector gathers no entire-space predictions.
        """
        if PREDICTIONS not in dataobject:
            raise ValueError(
                f"{self.spec.name} scores entire-space predictions: it works with the models and "
                "the runner of recbole_escm2, not with RecBole's own Trainer"
            )
        predictions = dataobject.get(PREDICTIONS)
        return {
            name: float(self.spec.value(predictions, replace(self.setting, k=k)))
            for name, k in self.names.items()
        }


def metric_class(spec: MetricSpec, cut: str = "K") -> type[EntireSpaceMetric]:
    """A class for RecBole's register, which holds one class a name."""
    namespace = {
        "spec": spec,
        "smaller": spec.judged_smaller,
        "cut": cut,
        "__doc__": spec.name,
    }
    return type(spec.name.replace(TOP_K, f"_at_{cut}"), (EntireSpaceMetric,), namespace)
