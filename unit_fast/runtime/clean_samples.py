"""Clean samples from the caller's loader, checked before anything is learnt from them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from unit_fast.calibration.inputs import Inputs, input_leaves
from unit_fast.calibration.loader_batches import check_finite, read_batch
from unit_fast.errors import DataError
from unit_fast.runtime.calls import Call


def clean_batches(
    loader: Any, example: Call, infinities: bool, device: torch.device, cast: Callable[[Tensor], Tensor]
) -> Iterator[Inputs]:
    """The inputs of each batch, cast and on ``device``.

    Args:
        loader: batches ``(x, y)`` or ``x``.
        example: what the model is called with.
        infinities: whether infinite inputs are usual, as in masks.
        device: where they are wanted.
        cast: converts one tensor to the dtype that is wanted.

    Raises:
        DataError: it is no iterable of batches, or one holds NaN or infinity, or is no batch of such samples.
    """
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | str | bytes):
        raise DataError(
            f"loader is a {type(loader).__name__}; expected an iterable of batches (x, y) or x, such as a DataLoader, "
            "or [x] for one batch"
        )
    dimensions = sorted(tensor.ndim for tensor in example.tensors())
    for number, item in enumerate(loader):
        x, _ = read_batch(item, number)
        leaves = input_leaves(x)
        if sorted(leaf.ndim for leaf in leaves.values()) != dimensions:
            shapes = ", ".join(f"{name} {tuple(leaf.shape)}" for name, leaf in leaves.items())
            expected = ", ".join(str(("N", *tensor.shape[1:])) for tensor in example.tensors())
            raise DataError(f"batch {number}: got {shapes}; the model was sanitised for {expected}")
        if not infinities:
            check_finite(leaves, number)
        yield pytree.tree_map_only(Tensor, lambda leaf: cast(leaf.to(device)), x)
