"""multiply(x, y) => mul(x, y), greater(x, y) => gt(x, y), … : one name for an operator that torch has under two."""

import torch
from torch import fx

_aten = torch.ops.aten

# torch.export keeps the name that the model calls, and torch tags only the other one as elementwise.
_NAMES = {
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "subtract": "sub",
    "negative": "neg",
    "absolute": "abs",
    "fix": "trunc",
    "arctan": "atan",
    "arcsinh": "asinh",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
}
_ALIASES = {
    getattr(getattr(_aten, alias), overload): getattr(getattr(_aten, name), overload)
    for alias, name in _NAMES.items()
    for overload in getattr(_aten, alias).overloads()
    if overload in getattr(_aten, name).overloads()
}


def spell_alike(module: fx.GraphModule) -> int:
    """Call every operator by the name that other passes know; returns how many had another."""
    renamed = 0
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _ALIASES:
            node.target = _ALIASES[node.target]
            renamed += 1
    module.recompile()
    return renamed
