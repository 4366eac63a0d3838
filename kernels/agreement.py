"""How closely a kernel must agree with its reference: one table, for tests, first-use checks and sweeps on a GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOLERANCE = {
    torch.float32: 2e-6,
    torch.float16: 1.2e-3,  # one rounding is 4.9e-4 at 1
    torch.bfloat16: 9e-3,
}
"""The largest ``error`` against float64, by the kernel's dtype, for operands of unit variance and sums scaled to it."""

TENSOR_CORE_TOLERANCE = {
    "tf32x3": 2e-5,  # tensor cores cut sums off instead of rounding: up to 2⁻²³ at each of 3·K/8 additions, K ≤ 1,000
    "tf32": 4e-3,  # ten bits of either factor, cut off too: 2⁻¹⁰ each
}
"""The same for float32 products on tensor cores, by ``launch.dot_precision``; the interpreter multiplies exactly."""


ROUNDED_TWICE = 4
"""Times the tolerance where a library rounds its product before our epilogue, at values up to four times as large."""


def tolerance_of(dtype: torch.dtype, precision: str = "ieee") -> float:
    """The largest ``error`` that rounding explains; ``precision`` says how float32 was multiplied."""
    if dtype == torch.float32 and precision in TENSOR_CORE_TOLERANCE:
        return TENSOR_CORE_TOLERANCE[precision]
    return TOLERANCE[dtype]


def error(
    actual: Tensor,
    exact: Tensor,  # the same shape, float64 or float32
) -> float:
    """The largest ``|actual − exact| / (1 + |exact|)``; infinite where one alone is NaN, or infinities differ.

    Raises:
        ValueError: the shapes differ.
    """
    if actual.shape != exact.shape:
        raise ValueError(
            f"unit_fast.kernels: a result of {tuple(actual.shape)} where {tuple(exact.shape)} was expected"
        )
    if exact.numel() == 0:
        return 0.0
    actual = actual.to(exact.dtype)
    same = (actual == exact) | (actual.isnan() & exact.isnan())
    differences = torch.where(same, 0.0, (actual - exact).abs() / (1 + exact.abs()))
    return float(differences.nan_to_num(math.inf, posinf=math.inf).max())
