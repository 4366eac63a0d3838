"""Whether a backend computes what the eager reference does, on the inputs it is first given."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from unit_fast.rounding import least_precise

# Largest difference relative to the largest magnitude in the reference. Whole networks sum in other orders than the
# reference and round at every layer: 1e-6 is usual in float32, and 4.7e-5 was seen where inputs a hundred times too
# large drive a network into its bounds. What computes something else is wrong by about 1.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""In float32 that of float16 where torch may multiply by TF32."""
# How many of the activations above a bound rounding may move across it: some, and a share of the largest count. Of 100
# in a network of five layers 4 were seen to in bfloat16, of 20 two. What counts something else is wrong by about all.
MOVED = {torch.float64: (1, 0.01), torch.float32: (1, 0.01), torch.float16: (2, 0.05), torch.bfloat16: (4, 0.25)}


def tolerance(expected: Tensor, computed_in: torch.dtype | None = None) -> float:
    """The largest difference from ``expected`` that rounding explains, relative to its largest magnitude.

    ``computed_in`` is the dtype of the network, whose outputs may be of a wider one.
    """
    return TOLERANCES.get(least_precise(expected.is_cuda, expected.dtype, computed_in or expected.dtype), 0.0)


def judgeable(expected: Any) -> bool:
    """Whether the reference is finite: runtimes differ on NaN, and what holds one is no ground to judge by."""
    return all(
        bool(leaf.isfinite().all())
        for leaf in pytree.tree_leaves(expected)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    )


def difference(
    actual: Any, expected: Any, counts: Collection[int] = (), computed_in: torch.dtype | None = None
) -> str | None:
    """How ``actual`` differs from ``expected``, in words; None where rounding explains it.

    NaN agrees with NaN. Of the whole numbers and truth values that a model returns only shape and dtype are compared:
    where clamped values tie, rounding decides which index comes first.

    Args:
        actual: what a backend computed, tensors in any structure.
        expected: what the reference computed.
        counts: which of the outputs, from the end if negative, count activations above a bound, of which rounding may
            move a few across it.
        computed_in: the dtype of the network; that of each output when omitted, and float32 of counts.
    """
    pairs = list(zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True))
    counting = {number % len(pairs) for number in counts}
    for number, (got, wanted) in enumerate(pairs):
        if not isinstance(wanted, Tensor):
            continue
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            return f"output {number} is {got.dtype} {tuple(got.shape)}, expected {wanted.dtype} {tuple(wanted.shape)}"
        if not wanted.numel():
            continue
        if not wanted.is_floating_point():
            moved = int((got.long() - wanted.long()).abs().max()) if number in counting else 0
            least, share = MOVED[least_precise(wanted.is_cuda, computed_in or torch.float32)]
            most = least + int(share * int(wanted.long().abs().max()))
            if moved > most:
                return f"output {number} is off by {moved}; expected at most {most}"
            continue
        finite = wanted.isfinite()
        if not torch.equal(got.isnan(), wanted.isnan()):
            return f"output {number} has NaN in other places"
        if not bool(finite.any()):
            continue
        scale = max(float(wanted[finite].abs().max()), torch.finfo(wanted.dtype).tiny)
        error, allowed = float((got - wanted)[finite].abs().max()) / scale, tolerance(wanted, computed_in)
        if not error <= allowed:
            return f"output {number} is off by {error:.1e} of its largest value; expected at most {allowed:.0e}"
    return None
