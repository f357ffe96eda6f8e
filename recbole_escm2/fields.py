"""The config keys that name columns with a meaning of their own."""

#: Columns that never are features: what is known after the impression only, and weights, of which
#: a logged propensity is one.
LABEL_KEYS = (
    "CLICK_FIELD",
    "CONVERSION_FIELD",
    "POTENTIAL_CONVERSION_FIELD",
    "TRUE_CTR_FIELD",
    "TRUE_CVR_FIELD",
    "PROPENSITY_FIELD",
    "CLICK_WEIGHT_FIELD",
    "CONVERSION_WEIGHT_FIELD",
)
#: Those that say how much an impression counts, by the task whose loss and metrics they weigh.
WEIGHT_KEYS = {
    "ctr": "CLICK_WEIGHT_FIELD",
    "cvr": "CONVERSION_WEIGHT_FIELD",
    "ctcvr": "CONVERSION_WEIGHT_FIELD",
}
