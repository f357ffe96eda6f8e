"""Models by name: those that ship, and where RecBole looks for such models."""

#: Names of the models that RecBole's look-ups find.
MODEL_NAMES = (
    *("ESMM", "ESCM2_IPS", "ESCM2_DR", "ESCM2_MRDR", "ESCM2_DR_BIAS", "ESCM2_DR_MSE"),
    *("ESCM2_TDR", "ESCM2_IPS_V2", "ESCM2_DR_V2", "ESCM2_STABLE_DR", "DCMT", "DDPO", "AITM"),
    *("NISE", "Naive", "MTL_IMP", "MTL_EIB", "MTL_IPS", "MTL_DR"),
)
#: What the others are compared with: found by our program alone, since RecBole has a LightGBM.
REFERENCE_NAMES = ("LogisticRegression", "LightGBM", "Constant", "Oracle")
#: Where RecBole looks for models that read features.
CONTEXT_PACKAGE = "recbole.model.context_aware_recommender"
#: Where the reference models are.
REFERENCE_PACKAGE = "recbole_escm2.model.reference"
