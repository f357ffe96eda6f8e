"""What an evaluation scores against: the labels of a split, and its potential outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Truth:
    """The labels of a split, in the order of its rows; each array is ``[|D|]``.

    Attributes:
        click: o in {0, 1}.
        conversion: r in {0, 1}; means something where o = 1 only. None where it wasn't logged.
        user: user ids, 0 where an impression has none, or None where the data has none.
        potential_conversion: r had the impression been clicked, where the data holds it.
        true_ctr: P(o = 1), where the data holds it.
        true_cvr: P(r = 1 | do(o = 1)), where the data holds it.
        propensity: ô of the data, where the model weighs clicks by it.
        click_weight: how much each impression counts in metrics of clicks, where they are weighted.
        conversion_weight: how much it counts in metrics of conversions.
        random_impressions: whether these impressions were drawn at random.
        clicks_known: whether o is what users chose, so that it can be scored.
        train_rate: share of positives among the impressions of train that a task is about, by
            task: what F1 and Recall decide by, where the config says ``base_rate``.
    """

    click: Array
    conversion: Array | None = None
    user: Array | None = None
    potential_conversion: Array | None = None
    true_ctr: Array | None = None
    true_cvr: Array | None = None
    propensity: Array | None = None
    click_weight: Array | None = None
    conversion_weight: Array | None = None
    random_impressions: bool = False
    clicks_known: bool = True
    train_rate: Mapping[str, float] = field(default_factory=dict)

    def of_part(self, part: str, schema: Mapping[str, Any]) -> Truth:
        """The same without what a part of the data doesn't have.

        Args:
            part: ``train``, ``valid`` or ``test``.
            schema: of the store; one without ``truth_parts`` has its truth in all parts.
        """
        if part in schema.get("truth_parts", (part,)):
            return replace(
                self,
                random_impressions=schema["truth"] == "random_impressions",
                clicks_known=schema.get("clicks_known", True),
            )
        return replace(self, potential_conversion=None)

    @property
    def has_weights(self) -> bool:
        """Whether impressions count differently in metrics."""
        return self.click_weight is not None or self.conversion_weight is not None

    def base_rates(self) -> dict[str, float]:
        """The share of positives of this split by task: of CVR over the clicks, else over D.

        By weight, where impressions have weights.
        """
        if self.has_weights:
            return self._weighted_base_rates()
        rows, clicks, conversions = self.counts().values()
        rates = {"ctr": clicks / rows if rows else 0.0}
        if self.conversion is not None:
            rates["cvr"] = conversions / clicks if clicks else 0.0
            rates["ctcvr"] = conversions / rows if rows else 0.0
        return rates

    def _weighted_base_rates(self) -> dict[str, float]:
        every, clicked = np.ones(len(self.click), dtype=bool), self.click > 0

        def share(positive: Array, rows: Array, weight: Array | None) -> float:
            own = rows.astype(np.float64) if weight is None else np.where(rows, weight, 0.0)
            whole = float(own.sum(dtype=np.float64))
            return float(own[positive].sum(dtype=np.float64)) / whole if whole else 0.0

        rates = {"ctr": share(clicked, every, self.click_weight)}
        if self.conversion is not None:
            converted = clicked & (self.conversion > 0)
            rates["cvr"] = share(converted, clicked, self.conversion_weight)
            rates["ctcvr"] = share(converted, every, self.conversion_weight)
        return rates

    def counts(self) -> dict[str, int]:
        """Impressions, clicks and conversions of clicked impressions."""
        clicked = self.click > 0
        converted = clicked if self.conversion is None else clicked & (self.conversion > 0)
        return {
            "impressions": len(clicked),
            "clicks": int(clicked.sum()),
            "conversions": 0 if self.conversion is None else int(converted.sum()),
        }
