"""How the pytest-benchmark suite measures: verified first, then timed, with what explains the figure beside it.

    python -m pytest benchmarks/bench_clamp.py              # one
    python -m pytest benchmarks --benchmark-json out.json   # all

Contenders share one process here, with the thread pools of torch and ONNX Runtime in it. The figures of the documents
come from commands that give each its own: ``benchmarks.runtime``, ``benchmarks.export``, ``benchmarks.scaling``,
``benchmarks.gpu``.
"""

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.environment import device_ceilings
from benchmarks.gpu.timing import time_calls
from benchmarks.roofline import Ceilings, CpuCeilings, cpu_ceilings
from unit_fast.kernels.agreement import error

Measure = Callable[..., None]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def measure(benchmark: Any) -> Measure:
    """``measure(call, expected, group=…, provider=…, within=…)``: compare its result, then time it.

    On CUDA the time that counts is that of a CUDA graph's replay, by events, in ``extra_info["replay_us"]``; what
    pytest-benchmark's own clock reads there is a call with its launch and a synchronisation.
    """

    def measured(
        call: Callable[[], Tensor],
        expected: Tensor,
        *,
        group: str,
        provider: str,
        within: float,
        bytes_moved: int | None = None,
        flops: int | None = None,
    ) -> None:
        with torch.no_grad():
            found = error(call(), expected)
            assert found <= within, f"{provider} is off by {found:.3g}, allowed is {within:.3g}"
            benchmark.group = group
            told = {"provider": provider, "error": found, "bytes": bytes_moved, "flops": flops, "device": str(DEVICE)}
            benchmark.extra_info.update({name: value for name, value in told.items() if value is not None})
            benchmark.extra_info["l2"] = "warm"  # the same operands again and again
            seconds = None
            if DEVICE.type == "cuda":
                replay = time_calls([call], "cuda")
                benchmark.extra_info["replay_us"], seconds = asdict(replay), replay.median * 1e-6

                def finished() -> None:
                    call()
                    torch.cuda.synchronize()

                benchmark(finished)
            else:
                benchmark(call)
                seconds = benchmark.stats.stats.median if benchmark.stats is not None else None
            if seconds is not None and bytes_moved is not None:
                least = _least_seconds(bytes_moved, flops or 0)
                benchmark.extra_info["percent_of_roofline"] = 100 * least / seconds

    return measured


def _least_seconds(moved: int, operations: int) -> float:
    ceilings = _ceilings()
    limits = ceilings.at(moved) if isinstance(ceilings, CpuCeilings) else ceilings
    return max(moved / limits.bandwidth, operations / limits.peak)


@functools.cache
def _ceilings() -> Ceilings | CpuCeilings:
    if DEVICE.type == "cpu":
        return cpu_ceilings()
    found = device_ceilings(dry_run=False)
    return Ceilings(found["bandwidth"], found["peaks"]["fp16"])
