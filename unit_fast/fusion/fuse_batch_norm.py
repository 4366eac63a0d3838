"""x · scale (+ shift) (→ + residual) (→ activation) (→ clamp_bound) => unit_fast::epilogue.

What a BatchNorm with nothing before it to fold into has become (``fold_batch_norm``), as in pre-activation networks,
and a layer's learned scale before a residual.
"""

from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.fusion.rewrite import add_constant, constant
from unit_fast.fusion.tail import broadcasts_to_sample, find_tail, replace

_aten = torch.ops.aten


def fuse_batch_norm(module: fx.GraphModule) -> int:
    """Fuse each scale, with the shift and whatever else follows, into one pass; returns how many.

    Scale and shift are constants that broadcast to one sample. A scale that nothing follows stays.
    """
    fused = 0
    for node in list(module.graph.nodes):
        matched = _with_constant(module, node, _aten.mul.Tensor)
        if matched is None:
            continue
        x, scale = matched
        nodes, last, shift = [node], node, None
        user = next(iter(node.users)) if len(node.users) == 1 else None
        matched = _with_constant(module, user, _aten.add.Tensor) if user is not None else None
        if user is not None and matched is not None:
            _, shift = matched
            nodes.append(user)
            last = user
        tail = find_tail(module, last)
        nodes.extend(tail.nodes)
        if len(nodes) > 1:
            operands = [_per_sample(module, operand, node) for operand in (scale, shift)]
            args = (x, *operands, tail.residual, tail.bound, *tail.act)
            replace(module, nodes, torch.ops.unit_fast.epilogue.default, args)
            fused += 1
    return fused


def _with_constant(module: fx.GraphModule, node: fx.Node, target: Any) -> tuple[fx.Node, fx.Node] | None:
    """The varying and the constant operand of ``node``, where the one has the result's shape and dtype."""
    if node.target is not target or node.kwargs.get("alpha", 1) != 1:
        return None
    for x, operand in (node.args[:2], node.args[1::-1]):
        if not isinstance(x, fx.Node) or not isinstance(operand, fx.Node) or constant(module, x) is not None:
            continue
        values = constant(module, operand)
        if values is not None and _fits(values, x, node):
            return x, operand
    return None


def _fits(values: Tensor, x: fx.Node, result: fx.Node) -> bool:
    before, after = x.meta.get("val"), result.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.ndim == 0:
        return False
    if not before.is_floating_point() or not values.is_floating_point() or before.dtype != after.dtype:
        return False
    return broadcasts_to_sample(_without_batch(values, before.ndim), x)


def _without_batch(values: Tensor, rank: int) -> Tensor:
    return values[0] if values.ndim == rank and values.shape[0] == 1 else values


def _per_sample(module: fx.GraphModule, operand: fx.Node | None, before: fx.Node) -> fx.Node | None:
    """The constant without a leading batch dimension of one."""
    values = constant(module, operand)
    if operand is None or values is None or values.ndim < before.meta["val"].ndim:
        return operand
    return add_constant(module, f"{operand.target}_per_sample", values[0], before)
