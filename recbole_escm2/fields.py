"""The config keys that name columns with a meaning of their own."""

#: Columns that never are features: what is known after the impression only, and a logged
#: propensity, which is a weight.
LABEL_KEYS = (
    "CLICK_FIELD",
    "CONVERSION_FIELD",
    "POTENTIAL_CONVERSION_FIELD",
    "TRUE_CTR_FIELD",
    "TRUE_CVR_FIELD",
    "PROPENSITY_FIELD",
)
