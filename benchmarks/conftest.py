"""How the pytest-benchmark suite measures: verified first, then timed, with what explains the figure beside it.

    python -m pytest benchmarks/bench_clamp.py              # one
    python -m pytest benchmarks --benchmark-json out.json   # all

Contenders share one process here, with the thread pools of torch and ONNX Runtime in it. The figures of the documents
come from commands that give each its own: ``benchmarks.runtime``, ``benchmarks.export``, ``benchmarks.scaling``,
``benchmarks.gpu``.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.environment import device_ceilings
from benchmarks.gpu.timing import L2, sets_for, time_as_called, time_calls
from benchmarks.roofline import Ceilings, CpuCeilings, cpu_ceilings
from unit_fast.kernels.agreement import error

Measure = Callable[..., None]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def measure(benchmark: Any) -> Measure:
    """``measure(call, expected, group=…, provider=…, within=…, bytes_moved=…, flops=…)``: compare, then time it.

    ``extra_info`` holds the provider, the error that was found, what is moved and computed, the state of L2, and, once
    timed, the percentage of the roofline.

    On CUDA the time that counts is taken by events and stands in ``extra_info``: ``"replay_us"`` of a CUDA graph's
    replay, or ``"as_called_us"`` of calls back to back where ``replay=False``, for what cannot be in a graph or has one
    of its own. What pytest-benchmark's own clock reads there is a call with its launch and a synchronisation.
    """

    def measured(
        call: Callable[[], Tensor],
        expected: Tensor,
        *,
        group: str,
        provider: str,
        within: float,
        bytes_moved: int,
        flops: int,
        replay: bool = True,
    ) -> None:
        with torch.no_grad():
            found = error(call(), expected)
            assert found <= within, f"{provider} is off by {found:.3g}, allowed is {within:.3g}"
            benchmark.group = group
            benchmark.extra_info |= {"provider": provider, "error": found, "device": str(DEVICE)}
            benchmark.extra_info |= {"bytes": bytes_moved, "flops": flops, "l2": l2_of(bytes_moved)}
            seconds: float | None
            if DEVICE.type == "cuda":
                timing = time_calls([call], "cuda") if replay else time_as_called(call, "cuda")
                benchmark.extra_info["replay_us" if replay else "as_called_us"] = asdict(timing)
                seconds = timing.median * 1e-6

                def finished() -> None:
                    call()
                    torch.cuda.synchronize()

                benchmark(finished)
            else:
                benchmark(call)
                seconds = benchmark.stats.stats.median if benchmark.stats is not None else None
            if seconds is not None:  # --benchmark-disable runs everything once and times nothing
                benchmark.extra_info["percent_of_roofline"] = 100 * least_seconds(bytes_moved, flops) / seconds

    return measured


def l2_of(bytes_moved: int) -> L2 | None:
    """Whether a call finds its operands in L2, since it is given the same again and again; None if nobody says."""
    if DEVICE.type == "cuda":
        size = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    else:
        size = os.sysconf("SC_LEVEL2_CACHE_SIZE") if "SC_LEVEL2_CACHE_SIZE" in os.sysconf_names else 0
    return sets_for(bytes_moved, size, "warm")[1] if size > 0 else None


def least_seconds(bytes_moved: int, flops: int) -> float:
    """By the roofline of this machine; in float32 on a CPU and half precision on a GPU, which int8 may beat."""
    ceilings = _ceilings()
    limits = ceilings.at(bytes_moved) if isinstance(ceilings, CpuCeilings) else ceilings
    return max(bytes_moved / limits.bandwidth, flops / limits.peak)


@functools.cache
def _ceilings() -> Ceilings | CpuCeilings:
    if DEVICE.type == "cpu":
        return cpu_ceilings()
    found = device_ceilings(dry_run=False)
    return Ceilings(found["bandwidth"], found["peaks"]["fp16"])
