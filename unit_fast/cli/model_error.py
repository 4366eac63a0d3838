"""The error of everything that loads models for the command line."""

from unit_fast.errors import UnitFastError


class ModelError(UnitFastError):
    """The model or the weights named on the command line cannot be loaded."""
