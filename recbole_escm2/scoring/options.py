"""Names of what the command ``score`` takes, which are checked before anything is loaded."""

#: Names of columns that can be given, with their defaults.
COLUMNS = {
    "CLICK_FIELD": "click",
    "CONVERSION_FIELD": "conversion",
    "POTENTIAL_CONVERSION_FIELD": "potential_conversion",
    "TRUE_CTR_FIELD": "true_ctr",
    "TRUE_CVR_FIELD": "true_cvr",
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "pctr": "pctr",
    "pcvr": "pcvr",
    "pctcvr": "pctcvr",
}
#: Options that are lists, and options that are values, as Python takes them.
LISTS = ("key", "metrics", "primary", "topk")
VALUES = ("baseline", "decision_threshold", "calibration_bins")
#: Options of the command, apart from names of columns.
OPTIONS = ("labels", "predictions", "out", *LISTS, *VALUES)
