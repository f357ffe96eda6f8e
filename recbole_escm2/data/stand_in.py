"""What a model's constructor reads of a data set, made of what its checkpoint kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from recbole.utils import FeatureType

from recbole_escm2.data.dataset import EntireSpaceDataset
from recbole_escm2.data.encoding import Known
from recbole_escm2.data.labels import LABEL_SOURCE
from recbole_escm2.errors import UsageError


class StandInDataset(EntireSpaceDataset):
    """A data set's fields without its rows.

    Args:
        config: a settled config.
        known: of the fields.

    Attributes:
        lengths: values that padded ids keep, by multi-valued field.
        scales: what the weights of a multi-valued field are divided by.
    """

    def __init__(self, config: Any, known: Known) -> None:
        self._known = known
        super().__init__(config)

    def _from_scratch(self) -> None:
        self._get_preset()
        self._get_field_from_config()
        self.store: Any = SimpleNamespace(
            vocabularies=self._known.vocabularies, tables={"inter": SimpleNamespace(fields=())}
        )
        self._describe_fields(self._known.described)
        self.set_field_property(self.label_field, FeatureType.FLOAT, LABEL_SOURCE, 1)
        self.inter_feat = _NoRows()  # type: ignore[assignment]
        self.user_feat = self.item_feat = None
        self.file_size_list = None

    def _check_conversion(self) -> None:
        """A training has found its labels."""

    def _check_weights(self) -> None:
        """A training has found its weights; new rows need none."""

    @property
    def lengths(self) -> dict[str, int]:
        return self._lengths

    @property
    def scales(self) -> dict[str, float]:
        return self._scales


class _NoRows:
    """In the place of the rows: a model that counts them would be another without a word."""

    def __getattr__(self, name: str) -> Any:
        raise self._error()

    def __getitem__(self, field: str) -> Any:
        raise self._error()

    def __len__(self) -> int:
        raise self._error()

    def _error(self) -> UsageError:
        return UsageError(
            "the model's constructor reads rows of the training data, which a checkpoint doesn't "
            "keep: compute what it needs of them where it trains, and hold it in a buffer "
            "(register_buffer), which is kept"
        )
