"""When is a sample suspicious? Thresholds from what the clamps take away from clean samples."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from unit_fast.bounds import Bounds, CleanReadings
from unit_fast.errors import DataError, UnitFastError

MEASURES = ("saturation", "excess")
RATES = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
"""Shares of false alarms that are kept where thresholds are needed without the bounds."""


def saturation(counts: Tensor, neurons: int) -> Tensor:
    """The share of a sample's ``neurons`` above their bound, (N,) float32 in [0, 1], from counts (N, sites)."""
    return counts.sum(1, dtype=torch.float32) / neurons


def usual_excess(bounds: Bounds) -> Tensor:
    """What is usual at each site, (sites,) float32: the mean excess of clean samples. It reads all of the bounds.

    Raises:
        DataError: the bounds hold no clean readings.
    """
    usual = require_readings(bounds).excess.mean(0)
    # A site that clean samples never saturate makes any excess suspicious, but not infinitely so.
    least = torch.stack([tensor[tensor.isfinite()].abs().mean() for tensor in bounds.tensors.values()]).nan_to_num(1.0)
    return torch.maximum(usual, (1e-3 * least).clamp_min(1e-12))


def relative_excess(excess: Tensor, usual: Tensor) -> Tensor:
    """How far above its bound the worst activation lies, (N,) float32, from excess (N, sites).

    In units of what is :func:`usual <usual_excess>` at its site. 0 where nothing is clamped; NaN counts as infinite, so
    that it raises an alarm.
    """
    return (excess / usual).amax(1).nan_to_num(math.inf, math.inf)


def threshold(bounds: Bounds, neurons: int, fpr: float, of: str) -> float:
    """The measure above which at most a share ``fpr`` of clean samples lie.

    Distribution-free: a new clean sample exceeds the k-th smallest of n clean ones with probability 1 − k/(n + 1) at
    most, so k = ⌈(1 − fpr)·(n + 1)⌉ (split conformal prediction; Vovk, Gammerman, Shafer, 2005, chapter 2).

    Raises:
        UnitFastError: ``of`` is no measure, or ``fpr`` outside (0, 1).
        DataError: the bounds hold no clean readings, too few for ``fpr``, or some that are no numbers.
    """
    if of not in MEASURES:
        raise UnitFastError(f"of={of!r}; expected one of {', '.join(MEASURES)}")
    if isinstance(fpr, bool) or not isinstance(fpr, int | float) or not 0 < fpr < 1:
        raise UnitFastError(f"fpr={fpr!r}; expected a share of false alarms between 0 and 1, such as 0.01")
    readings = require_readings(bounds)
    if of == "saturation":
        return _exceeded_by(saturation(readings.counts, neurons), fpr)
    return _exceeded_by(relative_excess(readings.excess, usual_excess(bounds)), fpr)


def excess_thresholds(bounds: Bounds) -> dict[float, float]:
    """By share of false alarms, the excess above which at most that share of clean samples lie.

    For those of ``RATES`` that the bounds hold enough clean samples for.

    Raises:
        DataError: the bounds hold no clean readings, or some that are no numbers.
    """
    clean = relative_excess(require_readings(bounds).excess, usual_excess(bounds))
    return {fpr: _exceeded_by(clean, fpr) for fpr in RATES if len(clean) >= _fewest(fpr)}


def _fewest(fpr: float) -> int:
    """How many clean samples a share of false alarms needs at least."""
    return math.ceil(1 / fpr - 1e-9) - 1


def _exceeded_by(
    clean: Tensor,  # (n,)
    fpr: float,
) -> float:
    """The value that a share ``fpr`` of clean samples exceeds, at most."""
    if len(clean) < _fewest(fpr):
        raise DataError(
            f"fpr={fpr} needs at least {_fewest(fpr):,} clean samples and the bounds hold the readings of "
            f"{len(clean):,}; learn from more with fit_threshold(loader), or allow more false alarms"
        )
    rank = math.ceil((1 - fpr) * (len(clean) + 1) - 1e-9)
    found = float(clean.sort().values[rank - 1])
    if not math.isfinite(found):
        raise DataError(
            "the clean readings in these bounds hold NaN or infinite values, and no sample exceeds a threshold of "
            f"{found}: learn what is usual anew with fit_threshold(loader) on clean samples"
        )
    return found


def require_readings(bounds: Bounds) -> CleanReadings:
    """The bounds' clean readings.

    Raises:
        DataError: there are none; says how to get some.
    """
    if bounds.readings is None:
        raise DataError(
            "these bounds hold no readings of clean samples (they were made by hand, or by a version without them): "
            "calibrate again, or learn what is usual with fit_threshold(loader) on clean samples"
        )
    return bounds.readings


def measures(counts: Tensor, excess: Tensor, usual: Tensor | None, neurons: int) -> Mapping[str, Tensor]:
    """Both measures by name, (N,) each; excess only where it is known what is usual."""
    found = {"saturation": saturation(counts, neurons)}
    if usual is not None:
        found["excess"] = relative_excess(excess, usual)
    return found


def unusable(inputs: Iterable[Any], infinities: bool, samples: int, device: torch.device) -> Tensor | None:
    """Which of the samples, (N,) bool, hold NaN in an input, or infinity unless ``infinities`` are usual there.

    None: none does.

    Activations do not tell: oneDNN's ReLU makes 0 of NaN.
    """
    found = None
    for leaf in inputs:
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim and len(leaf) == samples):
            continue
        if leaf.device.type == "cpu":  # elsewhere it would have to be waited for
            total = leaf.sum().item()
            if math.isfinite(total) or (infinities and not math.isnan(total)):
                continue
        bad = leaf.isnan() if infinities else ~leaf.isfinite()
        of_samples = (bad.flatten(1).any(1) if bad.ndim > 1 else bad).to(device)
        found = of_samples if found is None else found | of_samples
    return found
