"""A checkpoint behind HTTP: the command ``serve``."""
