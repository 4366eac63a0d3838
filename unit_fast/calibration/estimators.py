"""Bounds straight from the statistics of clean activations, without a search."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from unit_fast.calibration.context import CalibrationContext, Method
from unit_fast.calibration.granularity import from_units, to_units, unit_count
from unit_fast.calibration.moments import StreamingMoments
from unit_fast.calibration.progress import ProgressStep, StepClock
from unit_fast.calibration.quantiles import MINIMUM_CAPACITY, QuantileSketch
from unit_fast.calibration.settings import plain_numbers
from unit_fast.errors import UnitFastError
from unit_fast.sites import Site


@dataclass(frozen=True)
class MeanStd(Method):
    """Bound each unit at mean + k · standard deviation over the fit samples: where UNIT starts (section 4.1).

    Attributes:
        k: standard deviations above the mean, finite and ≥ 0. The deviation divides by N − 1.
    """

    k: float = 4.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        if not isfinite(self.k) or self.k < 0:
            raise UnitFastError(f"MeanStd: k must be a finite number of at least 0; got {self.k}")

    def fit(self, context: CalibrationContext) -> dict[str, Tensor]:
        """Mean and deviation in one pass."""
        bounds = {}
        for site, moments in observe_moments(context).items():
            values = (moments.mean + self.k * moments.std()).to(context.device, torch.float32)
            bounds[site.name] = from_units(values, site, context.granularity)
        return bounds


@dataclass(frozen=True)
class Maximum(Method):
    """Bound each unit at the largest value seen on the fit samples.

    As Ranger restricts ranges against hardware faults (Chen, Li and Pattabiraman, "A low-cost fault corrector for deep
    neural networks through range restriction", DSN 2021: by tensor); with granularity "neuron", the starting point of
    FitAct (Ghavami et al., DATE 2022).
    """

    def fit(self, context: CalibrationContext) -> dict[str, Tensor]:
        """The largest value in one pass, exact in the activations' own dtype."""
        largest: dict[str, Tensor] = {}
        for activations in _Passes(context).once():
            for site in context.sites:
                seen = to_units(activations[site.name], site, context.granularity).amax(0)
                before = largest.get(site.name)
                largest[site.name] = seen if before is None else torch.maximum(before, seen)
        return {site.name: from_units(largest[site.name].float(), site, context.granularity) for site in context.sites}


@dataclass(frozen=True)
class Percentile(Method):
    """Bound each unit at a quantile of its values on the fit samples.

    ReAct (Sun, Guo and Li, "ReAct: out-of-distribution detection with rectified activations", NeurIPS 2021) clips the
    penultimate layer at q = 0.90 over everything: ``Percentile(0.90)`` with ``granularity="tensor"`` and
    ``include=`` that one site. Over all sites 0.90 costs too much accuracy, hence the default.

    Quantiles are exact up to ``capacity`` observations a unit (samples, times positions for channel granularity, times
    elements for tensor) and within the error of :class:`~unit_fast.calibration.quantiles.QuantileSketch` beyond; the
    bounds' metadata has the largest rank error of any unit, guaranteed and likely, as a share of the observations.

    Attributes:
        q: quantile, 0 < q ≤ 1. 1 is the maximum.
        capacity: observations kept a unit, at least 64; None takes what fits 64 MiB a site, between 1,024 (neuron) and
            2^20 (tensor).
        memory: bytes that quantile buffers may take at a time, at least 1 MiB. Where all sites' buffers take more, the
            samples are gone through several times.
    """

    q: float = 0.99
    capacity: int | None = None
    memory: int = 512 * 2**20

    def __post_init__(self) -> None:
        plain_numbers(self)
        if not 0 < self.q <= 1:
            raise UnitFastError(
                f"Percentile: q must be above 0 and at most 1 (0.99 is the 99th percentile); got {self.q}"
            )
        if self.capacity is not None and self.capacity < MINIMUM_CAPACITY:
            raise UnitFastError(f"Percentile: capacity must be at least {MINIMUM_CAPACITY}; got {self.capacity}")
        if self.memory < 2**20:
            raise UnitFastError(f"Percentile: memory must be at least 1 MiB ({2**20}); got {self.memory}")

    def fit(self, context: CalibrationContext) -> dict[str, Tensor]:
        """Quantiles in as many passes as the memory asks for."""
        passes = self._plan(context)
        values = {
            site.name: torch.empty(unit_count(site, context.granularity), device=context.device)
            for site in context.sites
        }
        guaranteed, likely = 0.0, 0.0
        going_through = _Passes(context, len(passes))
        for parts in passes:
            sketches = [
                QuantileSketch(part.stop - part.start, part.capacity, context.seed, context.device) for part in parts
            ]
            for activations in going_through.once():
                for part, sketch in zip(parts, sketches, strict=True):
                    observations = to_units(activations[part.site.name], part.site, context.granularity)
                    sketch.update(observations[:, part.start : part.stop])
            for part, sketch in zip(parts, sketches, strict=True):
                values[part.site.name][part.start : part.stop] = sketch.quantile(self.q)
                guaranteed = max(guaranteed, min(1.0, sketch.rank_error / sketch.count))
                likely = max(likely, min(1.0, sketch.likely_rank_error() / sketch.count))
        context.notes["rank_error"] = {"guaranteed": guaranteed, "likely": likely}
        return {site.name: from_units(values[site.name], site, context.granularity) for site in context.sites}

    def _plan(self, context: CalibrationContext) -> list[list["_Part"]]:
        """Cut the sites' units into parts whose buffers fill at most ``memory`` bytes a pass."""
        passes: list[list[_Part]] = [[]]
        free = self.memory // 4
        for site in context.sites:
            units = unit_count(site, context.granularity)
            capacity = self.capacity or max(1024, min(2**20, 2**24 // units))
            capacity = min(capacity, self.memory // 4)
            start = 0
            while start < units:
                if free < capacity:
                    passes.append([])
                    free = self.memory // 4
                stop = min(units, start + free // capacity)
                passes[-1].append(_Part(site, start, stop, capacity))
                free -= (stop - start) * capacity
                start = stop
        return passes


class _Part(NamedTuple):
    """Units start … stop − 1 of a site, and the capacity of their sketch."""

    site: Site
    start: int
    stop: int
    capacity: int


def observe_moments(context: CalibrationContext) -> dict[Site, StreamingMoments]:
    """Moments of every unit of every site over the fit part, in one pass."""
    moments = {site: StreamingMoments(unit_count(site, context.granularity), context.device) for site in context.sites}
    for activations in _Passes(context).once():
        for site, seen in moments.items():
            seen.update(to_units(activations[site.name], site, context.granularity))
    return moments


class _Passes:
    """Go through the fit samples' activations ``count`` times, reporting each mini-batch when it is done with."""

    def __init__(self, context: CalibrationContext, count: int = 1) -> None:
        self._context = context
        self._total = count * ceil(len(context.fit_indices) / context.batch_size)
        self._clock = StepClock(self._total)
        self._step = 0

    def once(self) -> Iterator[dict[str, Tensor]]:
        for activations in self._context.activations(self._context.fit_indices):
            yield activations
            self._step += 1
            left = self._clock.seconds_left(self._step)
            self._context.progress(ProgressStep(self._step, self._total, seconds_left=left))
