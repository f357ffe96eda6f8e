"""Semi-synthetic entire spaces: real users, items and tastes, simulated clicks and conversions."""
