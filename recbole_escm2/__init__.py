"""ESMM and ESCM²: entire-space post-click conversion models, data and metrics for RecBole.

Importing this package registers its models and metrics with RecBole and does nothing else.
"""

from recbole_escm2.plugin import register, register_model

__version__ = "0.1.0"
__all__ = ["__version__", "register_model"]

register()
