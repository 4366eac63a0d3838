"""How long a candidate takes, by replaying a CUDA graph of it.

Timed call by call, a launch from Python takes longer than many a kernel, and the wrong one wins (pytorch#179246).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Clock(Protocol):
    """Times candidates; tests bring their own."""

    def __call__(self, name: str, run: Callable[[], Tensor]) -> float:
        """Microseconds of one ``run`` of the candidate called ``name``."""

    def release(self) -> None:
        """Let go of the memory that timing took."""


class CudaGraphClock:
    """The median over ``samples`` replays of a graph of ``runs`` calls, on a stream of its own.

    The operands stay in L2 where they fit, as they do in a network whose last layer has just written them.
    """

    def __init__(self, device: torch.device, runs: int = 10, samples: int = 7) -> None:
        self._device = device
        self._runs = runs
        self._samples = samples
        # One pool for all: what a graph's own pool held would stay reserved, candidate after candidate. The last graph
        # keeps the pool alive until the next one shares it.
        self._pool = torch.cuda.graph_pool_handle()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, name: str, run: Callable[[], Tensor]) -> float:  # noqa: ARG002 - the protocol's
        """Microseconds of one ``run``."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            for _ in range(2):  # what allocates, compiles or chooses an algorithm at first must not be captured
                run()
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on serving; torch.cuda.graph() would also empty their allocator's cache every time.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                for _ in range(self._runs):
                    run()
            finally:
                graph.capture_end()
            self._graph = graph
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            graph.replay()
            times: list[float] = []
            for _ in range(self._samples):
                start.record(stream)
                graph.replay()
                end.record(stream)
                end.synchronize()
                times.append(start.elapsed_time(end) * 1e3 / self._runs)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return statistics.median(times)

    def release(self) -> None:
        """Let go of the memory that timing took."""
        self._graph, self._pool = None, torch.cuda.graph_pool_handle()
