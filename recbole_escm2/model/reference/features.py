"""The features of impressions as columns of a sparse matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from recbole.utils import FeatureSource, FeatureType
from scipy import sparse
from torch import Tensor

from recbole_escm2.model.reference.base import pieces

_SOURCES = [
    *(FeatureSource.INTERACTION, FeatureSource.USER, FeatureSource.USER_ID),
    *(FeatureSource.ITEM, FeatureSource.ITEM_ID),
]


class Feature(NamedTuple):
    """A field that models read.

    Attributes:
        name: of the field.
        type: ``FeatureType``.
        size: ids of its vocabulary, padding and unknown ones included; of a number 2, or one more
            than it has buckets.
    """

    name: str
    type: Any
    size: int

    @property
    def is_number(self) -> bool:
        """Whether it is one number an impression, or the mean of several."""
        return self.type in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)

    @property
    def is_bag(self) -> bool:
        """Whether it has any number of tokens."""
        return bool(self.type == FeatureType.TOKEN_SEQ)


def features_of(config: Any, dataset: Any) -> list[Feature]:
    """The fields that RecBole's context-aware models read, in their order."""
    numbers = config["numerical_features"]
    return [
        Feature(name, kind, dataset.num(name))
        for name in dataset.fields(source=_SOURCES)
        if name != config["LABEL_FIELD"]
        and ((kind := dataset.field2type[name]) in _TOKENS or name in numbers)
    ]


_TOKENS = (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)


class OneHot:
    """Columns of a sparse matrix: one for each id of each field.

    An impression has a 1 at the id of a token field, its weight at each value of a multi-valued
    field (1 where values have no weight), and a number in the column of its bucket, which is the
    same for all where it isn't discretised.

    Args:
        features: the fields.
        pooling: of a multi-valued field: ``mean`` divides its weights by the number of its values,
            as models with an embedding do; ``sum`` leaves them as they are.
    """

    def __init__(self, features: list[Feature], pooling: str) -> None:
        self.features = features
        self.pooling = pooling
        ends = np.cumsum([0, *(feature.size for feature in features)])
        #: The first column of each field.
        self.starts = ends[:-1]
        self.columns = int(ends[-1])
        #: Of numbers that aren't discretised, which are the second of their field's two.
        self.numbers = np.array(
            [
                end + 1
                for end, f in zip(self.starts, features, strict=True)
                if f.is_number and f.size == 2
            ],
            dtype=np.int64,
        )

    def widened(self, values: Tensor, added: Mapping[str, int]) -> Tensor:
        """What is known of each column, with 0 for further ids of a field.

        Args:
            values: of the columns without those ids, ``[columns]``; of others they stay.
            added: how many of a field's ids are further ones.
        """
        sizes = [feature.size - added.get(feature.name, 0) for feature in self.features]
        if values.shape != (sum(sizes),):
            return values
        pieces = zip(self.features, values.split(sizes), strict=True)
        return torch.cat([F.pad(own, (0, feature.size - len(own))) for feature, own in pieces])

    def matrix(self, batch: Any) -> sparse.csr_matrix:
        """``[batch, columns]``."""
        return sparse.hstack([self.block(batch, f) for f in self.features], format="csr")

    def of_split(self, split: Any) -> sparse.csr_matrix:
        """``[rows, columns]``."""
        return sparse.vstack([self.matrix(batch) for batch in pieces(split)], format="csr")

    def block(self, batch: Any, feature: Feature) -> sparse.csr_matrix:
        """The columns of a field, ``[batch, size]``."""
        if feature.type == FeatureType.TOKEN:
            ids = batch[feature.name].numpy()
            values, lengths = np.ones(len(ids)), np.ones(len(ids), np.int64)
        elif feature.is_bag:
            ids, values, lengths = self._bag(batch, feature.name)
        else:
            ids, values, lengths = _number(batch[feature.name].numpy())
        ends = np.concatenate(([0], np.cumsum(lengths)))
        block = sparse.csr_matrix((values, ids, ends), shape=(len(lengths), feature.size))
        block.sum_duplicates()
        return block

    def _bag(self, batch: Any, name: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        bag = batch.bags[name]
        lengths = bag.lengths[0].numpy()
        values = np.ones(len(bag.ids)) if bag.weights is None else bag.weights.double().numpy()
        if self.pooling == "mean":
            values = values / np.repeat(lengths, lengths)
        return bag.ids.numpy(), values, lengths


def _number(pairs: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Column, value and how many, of a number or of the mean of several.

    Args:
        pairs: of a value and its column, ``[batch, 2]`` or ``[batch, length, 2]``, where column 0
            is no value.
    """
    pairs = pairs.reshape(len(pairs), -1, 2)
    there = pairs[..., 1] != 0
    lengths = there.sum(axis=1)
    values = pairs[..., 0][there] / np.repeat(lengths, lengths)
    return pairs[..., 1][there].astype(np.int64), values.astype(np.float64), lengths


def one_number(pairs: NDArray[Any]) -> NDArray[Any]:
    """Value times column, which is 1 or the bucket: a number, or the mean of several, ``[batch]``.

    Args:
        pairs: as :func:`_number` takes them; without any value it is NaN.
    """
    columns, values, lengths = _number(pairs)
    row = np.repeat(np.arange(len(lengths)), lengths)
    total = np.bincount(row, columns * values, len(lengths))
    return np.where(lengths > 0, total, np.nan)
