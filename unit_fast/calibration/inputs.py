"""The inputs of a model in one batch: a tensor, a tuple (positional arguments) or a dict (by name).

An argument is a tensor, or a tuple or dict of them: ``({"a": a},)`` is one dict, ``{"a": a}`` the argument ``a``.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils import _pytree as pytree

from unit_fast.capture import call_arguments

Inputs: TypeAlias = Tensor | tuple["Inputs", ...] | dict[str, "Inputs"]


def call_model(model: Callable[..., Any], x: Inputs) -> Any:
    """``model(x)`` for a tensor, ``model(*x)`` for a tuple, ``model(**x)`` for a dict."""
    args, kwargs = call_arguments(x)
    return model(*args, **kwargs)


def input_leaves(x: Inputs, name: str = "x") -> dict[str, Tensor]:
    """The tensors of ``x`` under readable names: ``x``, ``x[0]``, ``x[1]``, …, ``x['name']`` or ``x[0]['name']``."""
    if isinstance(x, Tensor):
        return {name: x}
    parts = x.items() if isinstance(x, dict) else enumerate(x)
    return {path: leaf for key, part in parts for path, leaf in input_leaves(part, f"{name}[{key!r}]").items()}


def rebuild_inputs(like: Inputs, leaves: list[Tensor]) -> Inputs:
    """``leaves``, in the order of :func:`input_leaves`, structured as ``like``."""
    rebuilt: Inputs = pytree.tree_unflatten(leaves, pytree.tree_structure(like))
    return rebuilt


def ordered_like(x: Inputs, example: Any) -> Inputs:
    """``x`` with the keys of its dicts in the order of those in ``example``, where they have the same."""
    if isinstance(x, dict) and isinstance(example, Mapping) and x.keys() == example.keys():
        return {key: ordered_like(x[key], value) for key, value in example.items()}
    if isinstance(x, tuple) and isinstance(example, tuple | list) and len(x) == len(example):
        return tuple(ordered_like(*pair) for pair in zip(x, example, strict=True))
    return x
