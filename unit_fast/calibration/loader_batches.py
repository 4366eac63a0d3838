"""Read what a loader yields: the inputs and labels of one batch, or a DataError that says what is wrong with it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unit_fast.calibration.inputs import Inputs, input_leaves
from unit_fast.errors import DataError


def read_batch(item: Any, number: int) -> tuple[Inputs, Tensor | None]:
    """Inputs, and labels (N,) int64 on the CPU or None, of the loader's batch ``number``.

    A list or tuple of two is ``(x, y)`` and of one is ``(x,)``, as torch's DataLoader collates datasets; everything
    else is ``x`` alone.

    Raises:
        DataError: no tensor where one is expected, inputs of different length, or labels that are no class indices.
    """
    x, y = item, None
    if isinstance(item, tuple | list):
        if not 1 <= len(item) <= 2:
            raise DataError(
                f"batch {number}: is a {type(item).__name__} of {len(item)}; expected (x, y), (x, None) or x; several "
                "inputs go in one tuple, ((a, b), y), or in a dict"
            )
        x, y = item if len(item) == 2 else (item[0], None)
    if isinstance(x, Mapping):
        x = {str(key): value for key, value in x.items()}  # names of arguments
    inputs = _inputs(x, "x", number)
    lengths = {len(leaf) for leaf in input_leaves(inputs).values()}
    if len(lengths) != 1:
        raise DataError(f"batch {number}: its inputs have different numbers of samples: {sorted(lengths)}")
    return inputs, None if y is None else _labels(y, lengths.pop(), number)


def check_finite(leaves: Mapping[str, Tensor], number: int) -> None:
    """Raise DataError naming the first sample of batch ``number`` that holds NaN or infinity."""
    for name, leaf in leaves.items():
        if not (leaf.is_floating_point() or leaf.is_complex()):
            continue
        # A sum that is finite has finite terms only, and takes no memory; where it overflows the exact test decides.
        if bool(torch.isfinite(leaf.sum())):
            continue
        bad = ~torch.isfinite(leaf).reshape(len(leaf), -1)
        if bool(bad.any()):
            sample = int(bad.any(1).nonzero()[0])
            raise DataError(
                f"batch {number}, sample {sample}: {int(bad[sample].sum())} of {bad.shape[1]} values of {name} are "
                "NaN or infinite; remove or repair the sample"
            )


def _inputs(x: Any, name: str, number: int) -> Inputs:
    if not isinstance(x, Mapping | tuple | list):
        return _tensor(x, name, number)
    if not x:
        raise DataError(f"batch {number}: {name} is an empty {type(x).__name__}; give at least one tensor")
    if isinstance(x, Mapping):
        return {key: _inputs(value, f"{name}[{key!r}]", number) for key, value in x.items()}
    return tuple(_inputs(value, f"{name}[{index}]", number) for index, value in enumerate(x))


def _tensor(value: Any, name: str, number: int) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(np.require(value, requirements="W"))
    if not isinstance(value, Tensor):
        raise DataError(
            f"batch {number}: {name} is a {type(value).__name__}; expected a tensor or a NumPy array of numbers"
        )
    if value.ndim == 0:
        raise DataError(f"batch {number}: {name} is a single number; expected samples along the first dimension")
    return value


def _labels(y: Any, size: int, number: int) -> Tensor:
    labels = _label_tensor(y, number)
    if labels.ndim == 2 and labels.shape[0] == size and labels.shape[1] > 1:
        raise DataError(
            f"batch {number}: labels of shape {tuple(labels.shape)} look like one-hot vectors or scores; give class "
            "indices (N,), as y.argmax(1) makes them"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(
            f"batch {number}: labels are {labels.dtype}; expected integer class indices (y.long()), or None for no "
            "labels; a second input belongs into x: ((a, b), None)"
        )
    if tuple(labels.shape) != (size,):
        raise DataError(
            f"batch {number}: expected labels of shape ({size},), one a sample; got {tuple(labels.shape)}"
            + ("; drop the dimension of 1 (y.squeeze(1))" if tuple(labels.shape) == (size, 1) else "")
        )
    labels = labels.detach().to("cpu", torch.int64)
    negative = (labels < 0).nonzero()
    if len(negative):
        sample = int(negative[0])
        raise DataError(
            f"batch {number}, sample {sample}: label {int(labels[sample])} is negative; expected class indices "
            "from 0 on"
        )
    return labels


def _label_tensor(y: Any, number: int) -> Tensor:
    if isinstance(y, Tensor):
        return y
    try:
        return torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"batch {number}: labels are a {type(y).__name__}; expected a tensor of class indices (N,), or None"
        ) from error
