"""Find the class scores in whatever a model returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from unit_fast.errors import DataError


def default_logits(output: Any) -> Tensor:
    """The logits (N, classes) of a model's output: the tensor itself, its item ``"logits"``, or its only tensor.

    Raises:
        DataError: the output is something else, or the tensor has not two dimensions; pass ``logits=`` then.
    """
    found = output
    if isinstance(found, Mapping):
        found = found["logits"] if "logits" in found else next(iter(found.values())) if len(found) == 1 else found
    elif isinstance(found, tuple | list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, Tensor):
        names = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise DataError(
            f"the model returns a {type(output).__name__}{names}; say where its class scores are, as in "
            "logits=lambda output: output[0]"
        )
    return check_logits(found)


def check_logits(logits: Tensor) -> Tensor:
    """``logits`` as they are, or DataError if they are not (N, classes) with at least two classes."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise DataError(
            f"expected class scores of shape (N, classes) with at least 2 classes, got {tuple(logits.shape)}; pass "
            "logits= to bring the model's output into that shape"
        )
    return logits
