"""The config keys that name columns with a meaning of their own."""

#: Columns that are known after the impression only, and so never are features.
LABEL_KEYS = (
    "CLICK_FIELD",
    "CONVERSION_FIELD",
    "POTENTIAL_CONVERSION_FIELD",
    "TRUE_CTR_FIELD",
    "TRUE_CVR_FIELD",
)
