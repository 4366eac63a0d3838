"""Backdoor-sanitised inference that is fast: learned activation bounds, fused kernels, verified ONNX export.

In four lines::

    bounds = unit_fast.calibrate(model, loader)
    fast = unit_fast.sanitize(model, bounds, example_input=x)
    report = unit_fast.evaluate(fast, loader, trigger=unit_fast.triggers.Patch(...), target=8)
    unit_fast.export_onnx(model, bounds, "model.onnx", example_input=x)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unit_fast.errors import (
    BackendUnavailableError,
    BoundsMismatchError,
    CaptureError,
    DataError,
    ParityError,
    ToleranceError,
    UnitFastError,
    UnitFastWarning,
)

if TYPE_CHECKING:
    from unit_fast.bounds import Bounds
    from unit_fast.calibration import Maximum, MeanStd, Percentile, Unit, calibrate
    from unit_fast.evaluation import Report, evaluate, triggers
    from unit_fast.export import ExportReport, export_onnx
    from unit_fast.runtime import SanitizedModel, sanitize

# Loaded at first use: torch takes seconds, and whoever asks for a version or a help text should not wait for it.
_HOMES = {
    "Bounds": "unit_fast.bounds",
    "ExportReport": "unit_fast.export",
    "Maximum": "unit_fast.calibration",
    "MeanStd": "unit_fast.calibration",
    "Percentile": "unit_fast.calibration",
    "Report": "unit_fast.evaluation",
    "SanitizedModel": "unit_fast.runtime",
    "Unit": "unit_fast.calibration",
    "calibrate": "unit_fast.calibration",
    "evaluate": "unit_fast.evaluation",
    "export_onnx": "unit_fast.export",
    "sanitize": "unit_fast.runtime",
    "triggers": "unit_fast.evaluation",
}

__all__ = [
    "BackendUnavailableError",
    "Bounds",
    "BoundsMismatchError",
    "CaptureError",
    "DataError",
    "ExportReport",
    "Maximum",
    "MeanStd",
    "ParityError",
    "Percentile",
    "Report",
    "SanitizedModel",
    "ToleranceError",
    "Unit",
    "UnitFastError",
    "UnitFastWarning",
    "calibrate",
    "evaluate",
    "export_onnx",
    "sanitize",
    "triggers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
