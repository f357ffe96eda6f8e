"""The raw format: four headerless CSV files without quotes, and the fields that they hold.

``sample_skeleton_SPLIT.csv`` has a line an impression::

    sample_id,click,purchase,common_feature_index,feature_num,feature_list

and ``common_features_SPLIT.csv`` a line for what many impressions of one user share::

    common_feature_index,feature_num,feature_list

for SPLIT in train and test. A feature list is ``field\\x02feature_id\\x03value`` joined by
``\\x01``; common_feature_index is a hex string, the key to join by.
"""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("train", "test")
FEATURE_SEPARATOR = b"\x01"
ID_SEPARATOR = b"\x02"
VALUE_SEPARATOR = b"\x03"
#: Most digits of a sample id or a feature id, so that it fits into 64 bits together with a field.
MOST_DIGITS = 18
#: Most digits of a join key.
KEY_DIGITS = 32

#: Column of the side file of a simulation, ``truth_SPLIT.npy``, float32 ``[rows, 3]``, by name.
TRUTH_COLUMNS = ("true_ctr", "true_cvr", "potential_conversion")
#: A file of this name says that the raw files beside it are simulated, and how.
SIMULATION_FILE = "simulation.json"


def skeleton_name(split: str) -> str:
    """File name of the impressions of a split."""
    return f"sample_skeleton_{split}.csv"


def common_name(split: str) -> str:
    """File name of the common features of a split."""
    return f"common_features_{split}.csv"


#: File name of a text by its kind, and then by split.
NAMES = {"common": common_name, "skeleton": skeleton_name}
KINDS = tuple(NAMES)


def truth_name(split: str) -> str:
    """File name of the true probabilities of a simulated split."""
    return f"truth_{split}.npy"


@dataclass(frozen=True)
class Field:
    """A feature field.

    Attributes:
        name: as it stands in the files.
        origin: ``user`` (in the common features), ``item`` or ``cross`` (both in the skeleton).
        multi: an impression may have several values.
        weighted: values other than 1 mean something.
        literature: among the 18 fields that most papers use.
    """

    name: str
    origin: str
    multi: bool = False
    weighted: bool = False
    literature: bool = True

    @property
    def is_bag(self) -> bool:
        """Whether it takes ids and weights to say what an impression has."""
        return self.multi or self.weighted


FIELDS: tuple[Field, ...] = (
    *(Field(n, "user") for n in ("101", "121", "122", "124", "125", "126", "127", "128", "129")),
    *(
        Field(n, "user", multi=True, weighted=True, literature=False)
        for n in ("109_14", "110_14", "127_14", "150_14")
    ),
    *(Field(n, "item") for n in ("205", "206", "207", "216")),
    Field("210", "item", multi=True, weighted=True, literature=False),
    Field("301", "cross"),
    *(Field(n, "cross", weighted=True) for n in ("508", "509", "702")),
    Field("853", "cross", multi=True, weighted=True),
)
FIELD_BY_NAME = {field.name: field for field in FIELDS}
