"""The inputs of a model in one batch: a tensor, a tuple of tensors (positional) or a dict of tensors (by name)."""

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from unit_fast.capture import call_arguments

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def call_model(model: Callable[..., Any], x: Inputs) -> Any:
    """``model(x)`` for a tensor, ``model(*x)`` for a tuple, ``model(**x)`` for a dict."""
    args, kwargs = call_arguments(x)
    return model(*args, **kwargs)


def input_leaves(x: Inputs) -> dict[str, Tensor]:
    """The tensors of ``x`` under readable names: ``x``, ``x[0]``, ``x[1]``, …, or ``x['name']``."""
    if isinstance(x, Tensor):
        return {"x": x}
    if isinstance(x, dict):
        return {f"x[{name!r}]": tensor for name, tensor in x.items()}
    return {f"x[{index}]": tensor for index, tensor in enumerate(x)}


def rebuild_inputs(like: Inputs, leaves: list[Tensor]) -> Inputs:
    """``leaves``, in the order of :func:`input_leaves`, structured as ``like``."""
    if isinstance(like, Tensor):
        return leaves[0]
    if isinstance(like, dict):
        return dict(zip(like, leaves, strict=True))
    return tuple(leaves)
