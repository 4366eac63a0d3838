"""The inputs of a model in one batch: a tensor, a tuple (positional arguments) or a dict (by name).

An argument is a tensor, or a tuple or dict of them: ``({"a": a},)`` is one dict, ``{"a": a}`` the argument ``a``.
"""

from collections.abc import Callable
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
    rest = iter(leaves)
    rebuilt: Inputs = pytree.tree_map(lambda _: next(rest), like)
    return rebuilt
