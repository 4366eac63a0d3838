"""Whether a candidate computes what the reference does, on random operands, before anything relies on it.

Triton convolutions have returned wrong numbers silently on Hopper (pytorch#173068: 84.7 % of the elements), and one
version of ptxas miscompiled what another got right; so nothing is believed that was not compared on this very machine.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from unit_fast.kernels.agreement import error, tolerance_of
from unit_fast.kernels.dispatch.candidates import REFERENCES, Candidate
from unit_fast.kernels.dispatch.problem import OPERANDS, Problem, Spec

LIBRARY_ROUNDING = 4
"""How much more a library's way may differ: it rounds before the epilogue too, where values are larger."""

MOST_COMPARED = 2**24
"""Elements of an output that are all compared."""
SAMPLES_COMPARED = 16
"""Samples that are compared of a larger one; of the others it is only seen that every value was written."""

_SPREAD = {"bias": 0.5, "residual": 1.0, "x": 1.0}


def random_operands(problem: Problem, device: torch.device) -> tuple[Any, ...]:
    """Arguments that pose ``problem``: the same values in every process; about a fifth of the outputs saturate."""
    seed = int.from_bytes(hashlib.sha256(problem.key.encode()).digest()[:7], "little")
    generator = torch.Generator(device).manual_seed(seed)

    def draw(name: str, spec: Spec | None) -> Tensor | None:
        if spec is None:
            return None
        if name in ("bound", "scale"):
            return spec.lay_out(0.5 + torch.rand(spec.shape, generator=generator, device=device))
        spread = _SPREAD.get(name) or max(1, math.prod(spec.shape[1:])) ** -0.5
        return spec.lay_out(spread * torch.randn(spec.shape, generator=generator, device=device))

    tensors = (draw(name, spec) for name, spec in zip(OPERANDS[problem.operator], problem.tensors, strict=True))
    return (*tensors, *problem.options)


def compared(problem: Problem) -> list[int] | None:
    """The samples whose values are compared; None for all. Of large outputs some from start to end, to save memory."""
    batch = problem.out_shape[0]
    if math.prod(problem.out_shape) <= MOST_COMPARED or batch <= SAMPLES_COMPARED:
        return None
    return [i * (batch - 1) // (SAMPLES_COMPARED - 1) for i in range(SAMPLES_COMPARED)]


def expected(problem: Problem, args: tuple[Any, ...]) -> Tensor:
    """What ``args`` give in the next wider dtype, by the eager reference, for the samples that are ``compared``."""
    wide = torch.float64 if problem.dtype == torch.float32 else torch.float32
    picked = compared(problem)

    def prepared(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (value[picked] if picked and name in ("x", "residual") else value).to(wide)

    names = (*OPERANDS[problem.operator], *("",) * len(problem.options))
    return REFERENCES[problem.operator](*(prepared(name, a) for name, a in zip(names, args, strict=True)))


def difference(problem: Problem, candidate: Candidate, args: tuple[Any, ...], truth: Tensor) -> str | None:
    """How ``candidate`` differs from ``truth``, or None where it does not, within the tolerance."""
    _poison(problem, truth.device)
    actual = candidate.call(*args)
    if actual.shape != problem.out_shape or actual.dtype != problem.dtype:
        return f"it gives {actual.dtype} {tuple(actual.shape)}, expected {problem.dtype} {problem.out_shape}"
    if bool(actual.isnan().any()):
        return "it leaves values unwritten, or makes NaN"
    picked = compared(problem)
    allowed, largest = tolerance(problem, candidate), error(actual[picked] if picked else actual, truth)
    return None if largest <= allowed else f"wrong by up to {largest:.2g}, allowed is {allowed:.2g}"


def tolerance(problem: Problem, candidate: Candidate) -> float:
    """The largest error that rounding explains; a wrong kernel is wrong by about 1."""
    allowed = tolerance_of(problem.dtype, problem.precision or "ieee")
    weight = problem.spec("weight")
    if problem.precision == "tf32x3" and weight is not None:
        allowed *= max(1.0, math.prod(weight.shape[1:]) / 1000)  # the table's entry is for sums of up to 1,000
    return allowed * LIBRARY_ROUNDING if candidate.provider == "library" else allowed


def _poison(problem: Problem, device: torch.device) -> None:
    """Leave NaN in the memory that the output will most likely get, so that a value never written shows."""
    torch.full(problem.out_shape, math.nan, dtype=problem.dtype, device=device)
