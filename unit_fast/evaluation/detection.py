"""How well what a model measures of each sample tells triggered samples from clean ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation.metrics import Rate

FALSE_ALARMS = 0.01
"""The share of clean samples that may be taken for triggered ones."""


@dataclass(frozen=True)
class Detection:
    """One measure as a detector of triggers.

    Attributes:
        measure: its name, e.g. "saturation".
        auroc: the probability that a triggered sample measures more than a clean one, ties counting half; 0.5 is
            chance.
        detected: triggered samples above the threshold.
        false_alarms: clean samples above it, ``FALSE_ALARMS`` of them at most.
        threshold: the smallest value that no more clean samples exceed.
    """

    measure: str
    auroc: float
    detected: Rate
    false_alarms: Rate
    threshold: float


class Readings:
    """What was measured of clean and of triggered samples: one number a sample and measure."""

    def __init__(self) -> None:
        self._clean: dict[str, list[Tensor]] = {}
        self._triggered: dict[str, list[Tensor]] = {}

    def add_clean(self, measures: Mapping[str, Tensor]) -> None:
        """Note what clean samples measure; (N,) each."""
        for name, values in measures.items():
            self._clean.setdefault(name, []).append(values)

    def add_triggered(self, measures: Mapping[str, Tensor]) -> None:
        """Note what triggered samples measure; (N,) each."""
        for name, values in measures.items():
            self._triggered.setdefault(name, []).append(values)

    def detections(self) -> tuple[Detection, ...]:
        """One result a measure, in the order in which they came."""
        return tuple(
            detection(name, torch.cat(self._clean[name]), torch.cat(triggered))
            for name, triggered in self._triggered.items()
        )


def detection(
    measure: str,
    clean: Tensor,  # (N,)
    triggered: Tensor,  # (M,)
) -> Detection:
    """Judge a measure by its values on clean and on triggered samples; NaN counts as larger than everything."""
    clean, triggered = (values.double().nan_to_num(math.inf, math.inf, -math.inf) for values in (clean, triggered))
    allowed = math.floor(FALSE_ALARMS * len(clean))
    threshold = float(clean.sort(descending=True).values[allowed])
    return Detection(
        measure=measure,
        auroc=area_under_roc(clean, triggered),
        detected=Rate(int((triggered > threshold).sum()), len(triggered)),
        false_alarms=Rate(int((clean > threshold).sum()), len(clean)),
        threshold=threshold,
    )


def area_under_roc(
    clean: Tensor,  # (N,)
    triggered: Tensor,  # (M,)
) -> float:
    """P(triggered > clean) + P(triggered = clean) / 2, exactly, by ranks (Mann and Whitney, 1947)."""
    _, place, count = torch.unique(torch.cat([clean, triggered]), return_inverse=True, return_counts=True)
    ranks = (count.cumsum(0) - (count - 1) / 2)[place].double()
    wins = ranks[len(clean) :].sum() - len(triggered) * (len(triggered) + 1) / 2
    return float(wins / (len(clean) * len(triggered)))


def checked_measures(found: object, samples: int, name: str) -> dict[str, Tensor]:
    """Measures as a dict of (N,) tensors on the CPU.

    Raises:
        DataError: they are none.
    """
    measures: Mapping[str, Any] = found if isinstance(found, Mapping) else {"saturation": found}
    for measure, values in measures.items():
        if not isinstance(values, Tensor) or values.shape != (samples,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise DataError(f"{name}: its {measure} is {shape}; expected a tensor ({samples},), a number a sample")
    return {measure: values.detach().to("cpu", torch.float64) for measure, values in measures.items()}
