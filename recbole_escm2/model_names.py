"""Models by name: those that ship, and where RecBole looks for such models."""

#: Names of the models that RecBole's look-ups find.
MODEL_NAMES = (
    *("ESMM", "ESCM2_IPS", "ESCM2_DR", "ESCM2_MRDR", "DCMT", "AITM", "Naive", "MTL_IMP"),
    *("MTL_EIB", "MTL_IPS", "MTL_DR"),
)
#: Where RecBole looks for models that read features.
CONTEXT_PACKAGE = "recbole.model.context_aware_recommender"
