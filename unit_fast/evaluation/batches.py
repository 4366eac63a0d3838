"""Batches as they come from a loader, checked."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unit_fast.errors import DataError


class Batch(NamedTuple):
    """Inputs and labels of one batch."""

    number: int
    inputs: Tensor  # (N, …)
    labels: Tensor  # (N,), int64, on the CPU


def labelled_batches(loader: Iterable[Any]) -> Iterator[Batch]:
    """Yield the loader's batches, checked; empty ones are passed over.

    Args:
        loader: yields ``(x, y)``: x (N, …), y (N,) whole numbers from 0; tensors or NumPy arrays.

    Raises:
        DataError: an empty loader; labels that are missing, negative, of another shape or type, or not as many as x.
    """
    samples = 0
    for number, content in enumerate(loader):
        if not isinstance(content, tuple | list) or len(content) < 2:
            found = (
                f"{type(content).__name__} of {len(content)}"
                if isinstance(content, tuple | list)
                else (type(content).__name__)
            )
            raise DataError(f"batch {number}: expected (x, y), found {found}; accuracy needs labels")
        inputs, labels = as_tensor(content[0], f"batch {number}: x"), as_tensor(content[1], f"batch {number}: y")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise DataError(f"batch {number}: labels must be class numbers (int64), found {labels.dtype}")
        if labels.ndim != 1:
            raise DataError(
                f"batch {number}: labels must be (N,) class numbers, found shape {tuple(labels.shape)}; "
                "one-hot labels become numbers with y.argmax(1)"
            )
        if inputs.ndim == 0 or len(inputs) != len(labels):
            raise DataError(f"batch {number}: {len(labels)} labels for inputs of shape {tuple(inputs.shape)}")
        labels = labels.to("cpu", torch.int64)
        if len(labels) == 0:
            continue
        if int(labels.min()) < 0:
            raise DataError(f"batch {number}: labels must be 0 or more, found {int(labels.min())}")
        samples += len(labels)
        yield Batch(number, inputs, labels)
    if samples == 0:
        raise DataError("the loader gave no samples; is the data folder empty, or the iterator already used up?")


def as_tensor(value: object, name: str) -> Tensor:
    """A tensor as it is, a NumPy array as a tensor of the same memory; anything else is a :class:`DataError`."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__array__"):
        return torch.as_tensor(value)
    raise DataError(f"{name}: expected a tensor or an array, found {type(value).__name__}")
