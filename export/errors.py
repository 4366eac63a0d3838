"""What can go wrong in the export, beyond the errors of the core."""

from unit_fast.errors import UnitFastError, UnitFastWarning


class ExportError(UnitFastError):
    """An export that was asked for cannot be made: an unknown form, a clamp the form cannot express, an operator."""


class SaturationWarning(UnitFastWarning):
    """Bounds that no verification input reached: their clamps were checked by structure only."""


class FusionWarning(UnitFastWarning):
    """Clamps that the installed runtime runs by themselves though their form was chosen to be fused."""
