"""RecBole's Collector and Evaluator for entire-space predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.evaluator import Collector, Evaluator
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import metrics_dict
from torch import Tensor

from recbole_escm2.distributed import gather_to_main, is_main, rank
from recbole_escm2.errors import UsageError
from recbole_escm2.evaluator.catalogue import PREDICTIONS, Setting, spec_of
from recbole_escm2.evaluator.metrics import UndefinedMetricError
from recbole_escm2.evaluator.predictions import NotPredictedError, NoTruthError, Predictions, Truth
from recbole_escm2.evaluator.recbole_metric import EntireSpaceMetric, metric_class
from recbole_escm2.metric_names import canonical_name


class MetricResult(dict[str, float]):
    """Values by metric name in the order of ``metrics``; look-up ignores case (``ctr_auc``).

    Attributes:
        undefined: why a metric that was asked for is missing, by name.
        threshold: the probability from which F1 and Recall predict a positive, by task.
        without_user: impressions that metrics per user leave out, as they have no user id.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.undefined: dict[str, str] = {}
        self.threshold: dict[str, float] = {}
        self.without_user = 0

    def _key(self, name: str) -> str:
        try:
            return canonical_name(name)
        except KeyError:
            return name

    def __getitem__(self, name: str) -> float:
        return super().__getitem__(name if super().__contains__(name) else self._key(name))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (
            isinstance(name, str) and super().__contains__(self._key(name))
        )

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401


class EntireSpaceData(DataStruct):
    """What metrics read: ours under ``entire_space.predictions``, RecBole's under its own keys.

    Args:
        predictions: labels and probabilities.
        label_task: the task that RecBole's own metrics score; their float32 label is made when one
            of them asks for it.
    """

    def __init__(self, predictions: Predictions, label_task: str) -> None:
        super().__init__()
        self.set(PREDICTIONS, predictions)
        self._label_task = label_task

    def get(self, name: str) -> Any:
        if name in ("rec.score", "data.label") and name not in self:
            rows = self[PREDICTIONS].scored(self._label_task)
            self.set("rec.score", torch.from_numpy(np.ascontiguousarray(rows.score)))
            self.set("data.label", torch.from_numpy(np.asarray(rows.label, dtype=np.float32)))
        return super().get(name)


class EntireSpaceCollector(Collector):
    """Gathers each batch's scores once, next to the labels of the whole split.

    RecBole's concatenates everything again with every batch, and forgets to clear what it doesn't
    know. Here a split costs one row of scores an impression.

    Of several processes each scores a part, and the first one gets the scores of all: it holds what
    one process would, the others a row of scores for each impression of their part.

    Args:
        tasks: the columns of the scores.
        label_task: the task that RecBole's own metrics score.
    """

    def __init__(self, tasks: tuple[str, ...], label_task: str) -> None:
        # Nothing of RecBole's constructor is needed: it registers what its own metrics read.
        self.tasks = tasks
        self.label_task = label_task
        #: The last split's labels and scores.
        self.predictions: Predictions | None = None
        self._scores = torch.empty(len(tasks), 0)
        self._collected = 0
        self._truth: Truth | None = None
        self._edges: Sequence[int] = (0, 0)

    def data_collect(self, train_data: Any) -> None:
        """Nothing is needed from the training data."""

    def begin(self, truth: Truth, edges: Sequence[int] | None = None) -> None:
        """Start a split.

        Args:
            truth: its labels, in the order in which the batches will come.
            edges: where the part of each process begins in it, and where the last one ends; one
                part by default, all of whose batches come here.
        """
        self.predictions = None  # of another split, which would take room beside
        self._edges = edges or (0, len(truth.click))
        # A task's scores lie side by side, as the metrics read them.
        rows = self._own_rows if self._sends_scores else len(truth.click)
        self._scores = torch.empty(len(self.tasks), rows)
        self._collected = 0
        self._truth = truth

    @property
    def _is_shared(self) -> bool:
        """Whether other processes score a part of the split."""
        return len(self._edges) > 2

    @property
    def _sends_scores(self) -> bool:
        """Whether another process gets what is scored here."""
        return self._is_shared and not is_main()

    @property
    def _own_rows(self) -> int:
        begin, end = self._edges[rank() if self._is_shared else 0 :][:2]
        return end - begin

    def eval_batch_collect(
        self, scores_tensor: Tensor, interaction: Any, positive_u: Any, positive_i: Any
    ) -> None:
        """Keep a batch's probabilities, ``[batch, tasks]``."""
        end = self._collected + len(scores_tensor)
        self._scores[:, self._collected : end] = scores_tensor.detach().T
        self._collected = end

    def get_data_struct(self) -> EntireSpaceData | None:
        """The labels and scores of the split; None where another process has them.

        Raises:
            UsageError: a score isn't finite.
        """
        assert self._truth is not None, "begin() comes before get_data_struct()"
        assert self._collected == self._own_rows, "a row of scores for each impression"
        if self._is_shared:
            for of_task in self._scores:
                gather_to_main(of_task, self._edges)
        if self._sends_scores:
            self.predictions = Predictions(self._truth, {})
            return None
        scores = self._scores.numpy()
        if not np.isfinite(scores.sum(dtype=np.float64)):
            raise UsageError(
                "the model's predictions aren't finite: its training has diverged. A smaller "
                "learning_rate, a clip_grad_norm or a propensity_floor above 0 may help"
            )
        predictions = Predictions(self._truth, dict(zip(self.tasks, scores, strict=True)))
        self.predictions = predictions
        return EntireSpaceData(predictions, self.label_task)


class EntireSpaceEvaluator(Evaluator):
    """Computes the metrics of a config, unrounded; what the data can't define is left out.

    Args:
        config: a complete config.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        # The valid metric is computed whether it is listed or not.
        self.metrics = list(dict.fromkeys([*config["metrics"], config["valid_metric"]]))
        self.metric_class = {name: self._metric(name) for name in self.metrics}

    def _metric(self, name: str) -> Any:
        spec = spec_of(name)
        if spec is not None:
            return metric_class(spec, name.partition("@")[2] or "K")(self.config)
        metric = metrics_dict[name.lower()](self.config)
        metric.decimal_place = 15
        return metric

    def evaluate(self, dataobject: DataStruct | None) -> MetricResult:
        """The value of each metric by its shown name.

        A metric of a task that the model doesn't predict is left out silently, and so is one of
        the defaults for whose truth the data has none; one that the user names, or one without a
        value, is noted in ``undefined``. None has no metric: another process computes them.
        """
        if dataobject is None:
            return MetricResult()
        named = "metrics" in getattr(self.config, "external_config_dict", ())
        result = MetricResult()
        for name in self.metrics:
            try:
                values = self._values(name, dataobject)
            except UndefinedMetricError as error:
                result.undefined[name] = str(error)
            except NoTruthError as error:
                if named:
                    result.undefined[name] = str(error)
            except NotPredictedError:
                continue
            else:
                result.update(values)
        if PREDICTIONS in dataobject:
            setting = Setting.of(self.config)
            predictions = dataobject.get(PREDICTIONS)
            for task in predictions.score:
                with contextlib.suppress(UndefinedMetricError, NoTruthError):
                    scored = predictions.scored(task)
                    result.without_user = max(result.without_user, scored.without_user)
                    result.threshold[task] = setting.threshold_of(scored)
        return result

    def _values(self, name: str, dataobject: DataStruct) -> dict[str, float]:
        metric = self.metric_class[name]
        if isinstance(metric, EntireSpaceMetric):
            return metric.calculate_metric(dataobject)
        if dataobject.get(PREDICTIONS).truth.has_weights:
            raise UndefinedMetricError(
                f"RecBole's {name} has no form for impressions that have weights (weighted_metrics)"
            )
        if len(np.unique(dataobject.get("data.label"))) < 2 and name == "AUC":
            raise UndefinedMetricError("the label has one value only")
        (value,) = metric.calculate_metric(dataobject).values()
        return {name: float(value)}

    def check_defined(self, truth: Truth, tasks: tuple[str, ...], label_task: str) -> None:
        """Find out before training whether the valid metric has a value on a split.

        Args:
            truth: the split's labels.
            tasks: what the model predicts.
            label_task: the task that RecBole's own metrics score.

        Raises:
            UsageError: it has none, whatever a model may predict.
        """
        name: str = self.config["valid_metric"]
        collector = EntireSpaceCollector(tasks, label_task)
        collector.begin(truth)
        guess = torch.rand(len(truth.click), len(tasks), generator=torch.Generator().manual_seed(0))
        collector.eval_batch_collect(guess, None, None, None)
        try:
            data = collector.get_data_struct()
            assert data is not None, "one process has all of it"
            self._values(name, data)
        except (UndefinedMetricError, NotPredictedError) as error:
            raise UsageError(
                f"valid_metric {name} has no value on the validation set: {error}. Choose another "
                "with --valid_metric, or give validation more impressions"
            ) from error
