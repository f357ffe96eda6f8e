"""Defaults that a user can change, one YAML file a subject (data, not code)."""
