"""Graph in float32 ⇒ the same graph computing in float16, called with and returning float32 as before.

Inputs and outputs keep their dtype, so that whoever serves the float32 file can serve this one with nothing changed.
Weights are rounded to nearest, bounds downwards: an activation may end below its bound, but never above it.
"""

import numpy as np
import torch
from torch import Tensor, fx

from unit_fast.export.errors import ExportError
from unit_fast.export.flat import FlatGraph, in_dtype
from unit_fast.fusion.postpone_transposes import postpone_transposes
from unit_fast.fusion.rewrite import call, constant, set_constant, tidy
from unit_fast.sites import clamp_bound

_aten = torch.ops.aten
# Divided by more or less, weights and activations would leave the numbers that float16 has with all their digits.
DIVISORS = (1e-3, 1e3)


def in_half(graph: FlatGraph) -> FlatGraph:
    """``graph`` in float16, over tensors of its own.

    Raises:
        ExportError: a weight is too large for float16; names it.
    """
    _require_range(graph.module)
    half = in_dtype(graph, torch.float16)
    for node, original in zip(half.module.graph.nodes, graph.module.graph.nodes, strict=True):
        if node.target is clamp_bound:
            bound = constant(graph.module, original.args[1])
            assert bound is not None
            set_constant(half.module, str(node.args[1].target), round_down(bound))
    for node in list(half.module.graph.nodes):
        if node.op == "placeholder" and _is_half(node):
            _cast_readers(half.module, node)
        elif node.op == "output":
            node.args = (tuple(_in_float32(half.module, value, node) for value in node.args[0]),)
    postpone_transposes(half.module)
    tidy(half.module)
    return half


def round_down(bound: Tensor) -> Tensor:
    """The largest float16 that is not above each value; +inf and NaN stay."""
    wide = bound.detach().cpu().double()
    near = wide.half()
    below = torch.from_numpy(np.asarray(np.nextafter(near.numpy(), np.float16(-np.inf))))
    return torch.where(near.double() > wide, below, near)


def _require_range(module: fx.GraphModule) -> None:
    largest = torch.finfo(torch.float16).max
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not name.startswith("bounds.") and bool((tensor.abs() > largest).any()):
            raise ExportError(
                f"{name} holds {tensor.abs().max().item():.3g}, and float16 ends at {largest:.0f}; use precision='fp32'"
            )


def _is_half(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float16


def _cast_readers(module: fx.GraphModule, placeholder: fx.Node) -> None:
    """What reads the input reads it in float16."""
    first = next(node for node in module.graph.nodes if node.op not in ("placeholder", "get_attr"))
    with module.graph.inserting_before(first):
        cast = call(module, _aten._to_copy.default, (placeholder,), like=placeholder, before=first)
    cast.kwargs = {"dtype": torch.float16}
    placeholder.meta["val"] = placeholder.meta["val"].float()
    placeholder.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)


def _in_float32(module: fx.GraphModule, value: fx.Node, output: fx.Node) -> fx.Node:
    if not _is_half(value):
        return value
    cast = call(module, _aten._to_copy.default, (value,), like=value, before=output)
    cast.kwargs = {"dtype": torch.float32}
    cast.meta["val"] = value.meta["val"].float()
    return cast
