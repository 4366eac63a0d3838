"""ONNX export of sanitised models."""

if __name__ != "unit_fast.export":
    raise ImportError(f"import this package as unit_fast.export, not as {__name__}: there must be one copy of it")

from unit_fast.export.errors import ExportError, FusionWarning, SaturationWarning
from unit_fast.export.exporter import export_onnx, optimize_onnx
from unit_fast.export.layout import triton_repository
from unit_fast.export.layout_config import TritonOptions
from unit_fast.export.normalization import Normalization
from unit_fast.export.report import ExportReport, OptimizedFile, ParityCheck, ParityResult, SiteReport
from unit_fast.export.session import OnnxRuntimeModel

__all__ = [
    "ExportError",
    "ExportReport",
    "FusionWarning",
    "Normalization",
    "OnnxRuntimeModel",
    "OptimizedFile",
    "ParityCheck",
    "ParityResult",
    "SaturationWarning",
    "SiteReport",
    "TritonOptions",
    "export_onnx",
    "optimize_onnx",
    "triton_repository",
]
