"""A CUDA device on the CPU, for tests of what runs on a GPU where there is none: ``make test-emulated-gpu``.

A plugin of pytest, loaded before anything imports torch: ``python -m pytest -p tests.emulated_gpu.plugin …``, in one
process. A command: ``python -c "import tests.emulated_gpu.plugin, unit_fast.cli as c; c.main()" evaluate …``.

Real: which device each tensor is on, and that operands must share it (``device.cpp``); the choices that torch and
unit_fast make by device; the kernels' values, in Triton's interpreter; what a capture forbids, which memory a replay
reads and writes, and that capturing runs nothing (``graphs.py``); streams and capture apart for each thread.

Not real: time and speed; concurrency (all streams are one, and in order); reuse of memory, by graphs of one pool or by
streams; TF32; compiled Triton kernels, and with them their limits; cuDNN's graph API; torch's choice of attention.
Inductor compiles nothing: its graph runs as it is (``inductor.py`` lets it compile).

It uses internals of torch and is made for the version in constraints.txt; with another it refuses.
"""

from __future__ import annotations

import os
import zlib

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton decides when a kernel is decorated
os.environ["UNIT_FAST_COMPILE_PROCESSES"] = "1"  # there is nothing to compile

from tests.emulated_gpu import device

_REASON = device.refusal()
if _REASON is not None:
    raise pytest.UsageError(_REASON)
_EXTENSION = device.load()

import torch
import torch._inductor.compile_fx
import torch.utils._triton

from tests.emulated_gpu import torch_cuda, triton_launches

REALLY_TIMED = 6  # candidates; the clock's own work is the same for each


COMPILE_FX = torch._inductor.compile_fx.compile_fx
"""Inductor's own."""


def _run_inductor_s_graphs_as_they_are() -> None:
    def run_or_compile(graph, inputs, *args, **options):
        given = [value for value in inputs if isinstance(value, torch.Tensor)]
        if not any(value.is_cuda for value in given):
            return COMPILE_FX(graph, inputs, *args, **options)
        return lambda *values: graph(*values)

    torch._inductor.compile_fx.compile_fx = run_or_compile
    # On the CPU it still compiles, and puts Triton's CUDA driver into the key of its cache.
    torch.utils._triton.triton_hash_with_backend = lambda: "emulated"


def _measure_little() -> None:
    """Interpreted, a candidate takes seconds: one kernel a problem, and a clock that is real for the first few only."""
    from unit_fast.kernels.dispatch import candidates, clock, environment

    environment.interpreting = lambda: False  # else kernels would run on the CPU too, as they do beside no real GPU
    candidates.candidates_for.__defaults__ = (1,)
    clock.CudaGraphClock.__init__.__defaults__ = (1, 1)
    timed = clock.CudaGraphClock.__call__
    left = REALLY_TIMED

    def time(self, name, run):
        nonlocal left
        left -= 1
        if left >= 0:
            return timed(self, name, run)
        run()
        return 10 + zlib.crc32(name.encode()) % 97 / 10  # any order will do, if it is always the same

    clock.CudaGraphClock.__call__ = time


torch_cuda.install(_EXTENSION)
triton_launches.install()
_run_inductor_s_graphs_as_they_are()


def pytest_collection_finish() -> None:
    """Once conftest and tests have imported what they test."""
    _measure_little()
