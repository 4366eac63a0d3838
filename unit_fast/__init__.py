"""Backdoor-sanitised inference that is fast: learned activation bounds, fused kernels, verified ONNX export."""

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

__all__ = [
    "BackendUnavailableError",
    "BoundsMismatchError",
    "CaptureError",
    "DataError",
    "ParityError",
    "ToleranceError",
    "UnitFastError",
    "UnitFastWarning",
]
