"""Scales: vectors by which tensors of the folded graph are smaller than those they stand for.

A scale has the rank of one sample, float64, each dimension 1 or the sample's; None stands for 1.
"""

from typing import Any

import torch
from torch import Tensor, fx


def sample_shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of one sample of a batched tensor."""
    return tuple(node.meta["val"].shape[1:])


def is_batched(value: Any) -> bool:
    """Whether ``value`` is a graph node whose first dimension is free and whose others are fixed."""
    fake = value.meta.get("val") if isinstance(value, fx.Node) else None
    if not isinstance(fake, Tensor) or not fake.is_floating_point() or fake.ndim < 2:
        return False
    return not isinstance(fake.shape[0], int) and all(isinstance(size, int) for size in fake.shape[1:])


def compress(scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``scale`` as one of rank ``len(shape)`` whose dimensions are 1 where it does not vary."""
    scale = scale.double()
    scale = scale.reshape(*[1] * (len(shape) - scale.ndim), *scale.shape)
    for axis in range(scale.ndim):
        first = scale.narrow(axis, 0, 1)
        if scale.shape[axis] > 1 and torch.equal(scale, first.expand_as(scale)):
            scale = first
    return scale.contiguous()


def varies_only_along(scale: Tensor, axis: int | None) -> bool:
    """Whether every other dimension of ``scale`` is 1; always true for an axis of None."""
    return axis is None or all(size == 1 for index, size in enumerate(scale.shape) if index != axis)


def along(scale: Tensor, axis: int, size: int) -> Tensor:
    """The values of ``scale`` along ``axis``, as a vector of ``size``."""
    return scale.reshape(-1).expand(size) if scale.numel() == 1 else scale.movedim(axis, 0).reshape(size)


def same(left: Tensor | None, right: Tensor | None) -> bool:
    """Whether two scales are equal."""
    if left is None or right is None:
        return (left is None or bool((left == 1).all())) and (right is None or bool((right == 1).all()))
    return bool((left == right).all())


def ratio(left: Tensor | None, right: Tensor | None) -> Tensor:
    """``left / right``; at least one of them is a tensor."""
    one = torch.ones((), dtype=torch.float64)
    return (one if left is None else left) / (one if right is None else right)
