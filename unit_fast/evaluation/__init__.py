"""Benign accuracy, attack success rate, robust accuracy, and a report a person likes to read.

Models are only ever called here: nothing of how they were captured, calibrated or sanitised is known.
"""

from unit_fast.evaluation import triggers
from unit_fast.evaluation.detection import Detection
from unit_fast.evaluation.examples import Example
from unit_fast.evaluation.histograms import SiteHistogram, collect_histograms
from unit_fast.evaluation.measure import evaluate
from unit_fast.evaluation.metrics import Rate, defence_effectiveness
from unit_fast.evaluation.report import ClassResult, Report

__all__ = [
    "ClassResult",
    "Detection",
    "Example",
    "Rate",
    "Report",
    "SiteHistogram",
    "collect_histograms",
    "defence_effectiveness",
    "evaluate",
    "triggers",
]
