"""Entire-space metrics: pure functions on arrays, and what RecBole needs to run them."""
