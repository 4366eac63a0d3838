"""What can go wrong, by name: every error of unit_fast derives from :class:`UnitFastError`."""


class UnitFastError(Exception):
    """Base of all errors of unit_fast.

    Each message names the site, file or option, what was expected, what was found, and what to do.
    """


class CaptureError(UnitFastError):
    """The model cannot be turned into a plain graph."""


class BoundsMismatchError(UnitFastError):
    """A bounds file is damaged, too new, or belongs to another model."""


class ToleranceError(UnitFastError):
    """No bounds were found that keep the model within the tolerance."""


class ParityError(UnitFastError):
    """An exported or compiled model does not agree with the sanitised graph."""


class BackendUnavailableError(UnitFastError):
    """A backend or an optional package that was asked for cannot run here."""


class DataError(UnitFastError):
    """Calibration or evaluation data is unusable."""


class UnitFastWarning(UserWarning):
    """Base of all warnings of unit_fast."""


class FallbackWarning(UnitFastWarning):
    """Something slower runs than was asked for, or could have been."""


class SizeWarning(UnitFastWarning):
    """Inputs are of another size than the example that a model was captured with."""
