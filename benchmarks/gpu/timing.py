"""How long a call takes, by replaying a CUDA graph of many.

Timed call by call, launches from Python take longer than many a kernel (pytorch#179246). A graph holds calls over
several sets of operands in turn. With enough sets that they exceed twice the L2 cache, every call finds its operands
in memory ("cold"); with one set that fits, in the cache ("warm"). Outputs are kept, so that they take turns as well.
The gap between two kernels of a graph, about a microsecond, is counted in.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

L2 = Literal["cold", "warm"]
SAMPLES = 15
SAMPLE_SECONDS = 0.02
"""Of calls back to back, where they are timed as they are made."""
MOST_SETS = 24
MOST_PLANS = 4
"""Of cuDNN, tried for a convolution: its heuristics rank the good ones first, and each takes a tenth of a second."""


def best_of_cudnn() -> None:
    """Let cuDNN time its plans at the first call of a convolution: the library at its best."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = MOST_PLANS


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median and the 20th and 80th percentile over the replays."""

    median: float
    p20: float
    p80: float
    samples: int
    calls_a_sample: int

    @classmethod
    def of(cls, microseconds: Sequence[float], calls: int) -> "Timing":
        """Of the duration of each replay of ``calls`` calls."""
        each = sorted(value / calls for value in microseconds)
        fifths = statistics.quantiles(each, n=5, method="inclusive") if len(each) > 1 else [each[0]] * 4
        return cls(statistics.median(each), fifths[0], fifths[-1], len(each), calls)


def sets_for(footprint: int, l2_bytes: int, l2: L2) -> tuple[int, L2]:
    """How many sets of operands of ``footprint`` bytes to take turns with, and the state of L2 that this reaches."""
    if l2 == "warm":
        return 1, "warm" if footprint <= l2_bytes else "cold"
    sets = min(MOST_SETS, max(1, -(-2 * l2_bytes // footprint)))
    return sets, "cold" if sets * footprint >= 2 * l2_bytes else "warm"


def time_calls(calls: Sequence[Callable[[], Tensor]], device: str, sample_microseconds: float = 500.0) -> Timing:
    """Time ``calls``, one a set of operands, in turn. On the CPU by the host's clock: that serves dry runs only."""
    return _replayed(calls, sample_microseconds) if device == "cuda" else _on_host(calls)


def time_as_called(call: Callable[[], object], device: str) -> Timing:
    """Time ``call`` back to back, launches and all: for what has a CUDA graph of its own, or cannot be in one."""
    once = min(_back_to_back(call, 1, device) for _ in range(3))
    calls = max(1, min(1000, math.ceil(SAMPLE_SECONDS * 1e6 / once)))
    return Timing.of([_back_to_back(call, calls, device) for _ in range(SAMPLES)], calls)


def _back_to_back(call: Callable[[], object], calls: int, device: str) -> float:
    """Microseconds of so many calls."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) * 1e6


def _replayed(calls: Sequence[Callable[[], Tensor]], sample_microseconds: float) -> Timing:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in (*calls, *calls[:2]):  # what compiles, allocates or picks an algorithm must not be captured
            call()
        graph, one = _captured(calls, 1), []
        for _ in range(3):
            one.append(_replay(graph, stream))
        rounds = min(200, max(1, round(sample_microseconds / max(min(one), 1.0))))
        if rounds > 1:
            graph = _captured(calls, rounds)
            _replay(graph, stream)
        durations = [_replay(graph, stream) for _ in range(SAMPLES)]
    torch.cuda.current_stream().wait_stream(stream)
    return Timing.of(durations, rounds * len(calls))


def _captured(calls: Sequence[Callable[[], Tensor]], rounds: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    outputs: list[Tensor | None] = [None] * len(calls)
    torch.cuda.synchronize()
    graph.capture_begin()
    try:
        for _ in range(rounds):
            for i, call in enumerate(calls):
                outputs[i] = call()
    finally:
        graph.capture_end()
    return graph


def _replay(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(stream)
    graph.replay()
    end.record(stream)
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def _on_host(calls: Sequence[Callable[[], Tensor]]) -> Timing:
    durations = []
    for _ in range(2):
        start = time.perf_counter()
        for call in calls:
            call()
        durations.append((time.perf_counter() - start) * 1e6)
    return Timing.of(durations, len(calls))
