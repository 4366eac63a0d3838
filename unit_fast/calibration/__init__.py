"""Bounds from clean samples: the calibration set, streaming statistics and the methods built on them."""

from unit_fast.calibration.calibrate import calibrate
from unit_fast.calibration.context import CalibrationContext, Method
from unit_fast.calibration.estimators import Maximum, MeanStd, Percentile
from unit_fast.calibration.moments import StreamingMoments
from unit_fast.calibration.progress import Progress, ProgressStep
from unit_fast.calibration.quantiles import QuantileSketch
from unit_fast.calibration.samples import SampleStore
from unit_fast.calibration.unit import Unit

__all__ = [
    "CalibrationContext",
    "Maximum",
    "MeanStd",
    "Method",
    "Percentile",
    "Progress",
    "ProgressStep",
    "QuantileSketch",
    "SampleStore",
    "StreamingMoments",
    "Unit",
    "calibrate",
]
