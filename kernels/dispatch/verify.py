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

from unit_fast.kernels.dispatch.candidates import REFERENCES, Candidate
from unit_fast.kernels.dispatch.problem import OPERANDS, Problem, Spec

# Against a reference in the next wider dtype, relative to 1 + its size. Sums have unit variance; a library's product is
# rounded before the epilogue and after it, at values of up to 8 (2⁻¹¹·8 in float16). A wrong kernel is wrong by 1.
TOLERANCE = {torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
TF32_TOLERANCE = 4e-3  # ten bits of mantissa in the products, as in float16

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


def expected(problem: Problem, args: tuple[Any, ...]) -> Tensor:
    """What ``args`` give in the next wider dtype, by the eager reference."""
    wide = torch.float64 if problem.dtype == torch.float32 else torch.float32
    return REFERENCES[problem.operator](*(a.to(wide) if isinstance(a, Tensor) else a for a in args))


def difference(problem: Problem, candidate: Candidate, args: tuple[Any, ...], truth: Tensor) -> str | None:
    """How ``candidate`` differs from ``truth``, or None where it does not, within the tolerance."""
    _poison(truth, problem.dtype)
    actual = candidate.call(*args)
    if actual.shape != truth.shape or actual.dtype != problem.dtype:
        return f"it gives {actual.dtype} {tuple(actual.shape)}, expected {problem.dtype} {tuple(truth.shape)}"
    tolerance = TF32_TOLERANCE if problem.precision == "tf32" else TOLERANCE[problem.dtype]
    error = (actual - truth).abs_() / (1 + truth.abs())
    wrong = error.numel() - int((error <= tolerance).sum())  # NaN counts as wrong
    if not wrong:
        return None
    largest = float(error.nan_to_num(math.inf).max())
    return f"{wrong} of {error.numel()} values are wrong, by up to {largest:.2g}; allowed is {tolerance:.2g}"


def _poison(like: Tensor, dtype: torch.dtype) -> None:
    """Leave NaN in the memory that the output will most likely get, so that a value never written shows."""
    torch.full(like.shape, math.nan, dtype=dtype, device=like.device)
