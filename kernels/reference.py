"""Eager truth of the op family: what every kernel, backend and exported file is compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def clamp_bound_ref(
    x: Tensor,  # (N, *S), floating
    bound: Tensor,  # broadcasts to (*S)
) -> Tensor:  # (N, *S), x.dtype
    """``where(x > bound, bound, x)`` in ``x.dtype``.

    NaN in ``x`` stays NaN (``x > bound`` is false), as with ``torch.clamp``; a NaN bound bounds nothing. At a tie the
    gradient goes to ``x``. Differentiable: dX is the gradient where ``x <= bound`` or ``x`` is NaN, dBound is the sum
    of the rest over the batch and over the dimensions that ``bound`` was broadcast along.
    """
    if bound.dtype != x.dtype:
        bound = bound.to(x.dtype)
    return torch.where(x > bound, bound, x)
