"""Predictions that were made elsewhere: read, scored, compared, shown."""
