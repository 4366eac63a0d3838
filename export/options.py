"""What the caller of an export asks for, and whether there is such a thing."""

import math
from dataclasses import dataclass

from unit_fast.bounds import Bounds
from unit_fast.export.errors import ExportError
from unit_fast.export.forms.choice import AUTO, INSPECTED, check_choice
from unit_fast.export.forms.clip import shape_refusal
from unit_fast.export.normalization import Normalization
from unit_fast.export.translate import OPSETS
from unit_fast.threshold import require_readings

PRECISIONS = ("fp32", "fp16", "int8")
INT8_FORMS = ("auto", "min", "folded")


@dataclass(frozen=True)
class Options:
    """What the caller asked for; see :func:`unit_fast.export.exporter.export_onnx`."""

    form: str
    precision: str
    opset: int
    verify: bool
    weight_bits: int = 8
    target: str = "onnxruntime"
    normalization: Normalization | None = None
    inspect: bool = False

    def check(self) -> None:
        """Raise ExportError for what is not there."""
        check_choice(self.form, self.target)
        if self.precision not in PRECISIONS:
            raise ExportError(
                f"precision={self.precision!r} is not available; the precisions are: {', '.join(PRECISIONS)}"
            )
        if self.precision == "int8" and self.form not in INT8_FORMS:
            raise ExportError(
                f"form={self.form!r} is not available in int8, where scales and integers clamp; the forms are: "
                f"{', '.join(INT8_FORMS)}"
            )
        if self.precision == "int8" and self.normalization is not None:
            raise ExportError("normalization is not available in int8, whose calibration data is what the model takes")
        if self.inspect and self.precision == "int8":
            raise ExportError(
                "inspect=True is not available in int8, where activations saturate at their bounds and how far they "
                'went beyond is gone; use precision="fp32" or "fp16"'
            )
        if self.inspect and self.form not in (AUTO, *INSPECTED):
            raise ExportError(
                f"form={self.form!r} is not available with inspect=True, for which an activation has to be there as it "
                f"was before its clamp; the forms are: {', '.join((AUTO, *INSPECTED))}"
            )
        if self.weight_bits not in (7, 8):
            raise ExportError(f"weight_bits={self.weight_bits!r} is not available; expected 8 or 7")
        if self.opset not in OPSETS:
            raise ExportError(
                f"opset={self.opset!r} is not available; expected one from {OPSETS.start} to {OPSETS.stop - 1}"
            )

    def check_bounds(self, bounds: Bounds) -> None:
        """Raise ExportError for bounds whose shape the form cannot express, DataError for what they do not know."""
        if self.inspect:
            require_readings(bounds)
        for site, bound in bounds.items():
            reason = shape_refusal(tuple(bound.shape)) if self.form == "clip" else None
            if reason is not None and not bool((bound == math.inf).all()):
                raise ExportError(f"form={self.form!r} cannot express the clamp of site {site}: {reason}")
