"""A trained model as one artefact that runs without this package, and what describes it."""
