"""How fast a file runs beside the same network without clamps: both in ONNX Runtime, in this process, in turn.

A quick look at the machine at hand, not a benchmark: `benchmarks/export.py` gives every contender a process of its own.
"""

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np
from rich.table import Table

from unit_fast.export.random_inputs import random_inputs
from unit_fast.export.session import OnnxRuntimeModel
from unit_fast.timing import Timing

BATCHES = (1, 16)
_FEWEST_ROUNDS = 5
_MOST_ROUNDS = 200


@dataclass(frozen=True)
class Speed:
    """Seconds of one call at one batch size.

    Attributes:
        batch: number of samples.
        clamped: the exported file.
        plain: the file it is compared with.
        ratio: clamped over plain, the median over rounds of one call each.
        ratio_p20: 20th percentile of it over the rounds.
        ratio_p80: 80th percentile.
    """

    batch: int
    clamped: Timing
    plain: Timing
    ratio: float
    ratio_p20: float
    ratio_p80: float

    def to_dict(self) -> dict[str, Any]:
        """All of it in types that JSON knows."""
        return asdict(self)


def compare_speed(
    file: str | PathLike[str],
    plain: str | PathLike[str],
    *,
    batches: Sequence[int] = BATCHES,
    seconds: float = 1.5,
    threads: int | None = None,
) -> list[Speed]:
    """Time two files with the same inputs, a call of each in turn, in an order drawn anew each round.

    Idle threads do not spin, since those of one file would take the processor from the other.

    Args:
        file: the exported file.
        plain: what to compare it with.
        batches: sizes, ascending. One whose first call takes longer than a third of ``seconds`` is left out, but the
            smallest is always timed.
        seconds: about how long to time each batch size; at least five rounds, whatever they take.
        threads: of one operator; ONNX Runtime's own choice when omitted.

    Raises:
        DataError: a file cannot be loaded or run, or has a dimension besides the batch that is free.
        BackendUnavailableError: ONNX Runtime is missing.
    """
    models = [OnnxRuntimeModel(path, threads=threads) for path in (file, plain)]
    speeds: list[Speed] = []
    for batch in batches:
        calls = [(model, random_inputs(model, batch)) for model in models]
        first = max(_seconds(model, inputs) for model, inputs in calls)
        if speeds and first > seconds / 3:
            break
        speeds.append(_compare(calls, batch, seconds))
    return speeds


def _compare(calls: Sequence[tuple[OnnxRuntimeModel, dict[str, np.ndarray]]], batch: int, seconds: float) -> Speed:
    order = random.Random(0)
    taken: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    while len(taken[0]) < _FEWEST_ROUNDS or (len(taken[0]) < _MOST_ROUNDS and time.perf_counter() - began < seconds):
        for which in order.sample((0, 1), 2):
            taken[which].append(_seconds(*calls[which]))
    ratios = [clamped / plain for clamped, plain in zip(*taken, strict=True)]
    spread = Timing.of(ratios)
    return Speed(batch, Timing.of(taken[0]), Timing.of(taken[1]), statistics.median(ratios), spread.p20, spread.p80)


def _seconds(model: OnnxRuntimeModel, inputs: dict[str, np.ndarray]) -> float:
    began = time.perf_counter()
    model.run(inputs)
    return time.perf_counter() - began


def speed_table(speeds: Sequence[Speed], title: str) -> Table:
    """The comparison for people: milliseconds, and by how much the clamped file is slower or faster."""
    table = Table(title=title)
    for heading in ("batch", "this file, ms", "without clamps, ms", "time, p20 to p80"):
        table.add_column(heading, justify="right")
    for speed in speeds:
        table.add_row(
            str(speed.batch),
            *(f"{1e3 * timing.median:.3g}" for timing in (speed.clamped, speed.plain)),
            f"{speed.ratio:.2f}× ({speed.ratio_p20:.2f} to {speed.ratio_p80:.2f})",
        )
    return table
