"""A study as pages, tables and pictures."""
