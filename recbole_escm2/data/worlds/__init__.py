"""Worlds: simulations with known truth, as arrays."""
