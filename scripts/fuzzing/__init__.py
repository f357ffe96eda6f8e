"""Damages to files of every kind that the program reads, and what it makes of them."""
