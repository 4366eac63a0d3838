"""Linear (→ + residual) (→ activation) (→ clamp_bound) => unit_fast::linear."""

import torch
from torch import Tensor, fx

from unit_fast.fusion.rewrite import constant
from unit_fast.fusion.tail import find_tail, replace


def fuse_linear(module: fx.GraphModule) -> int:
    """Fuse what follows each linear layer into it; returns how many took something.

    One with nothing behind it stays: the library adds the bias itself. Left alone: weights that are computed, and an
    input without a batch in front.
    """
    fused = 0
    for node in list(module.graph.nodes):
        if node.target is not torch.ops.aten.linear.default or not _can_be_fused(module, node):
            continue
        tail = find_tail(module, node)
        if tail.nodes:
            x, weight, bias = (*node.args, None)[:3]
            args = (x, weight, bias, tail.residual, tail.bound, *tail.act)
            replace(module, (node, *tail.nodes), torch.ops.unit_fast.linear.default, args)
            fused += 1
    return fused


def _can_be_fused(module: fx.GraphModule, node: fx.Node) -> bool:
    x, weight_node, bias = (*node.args, None)[:3]
    weight = constant(module, weight_node)
    if weight is None or weight.ndim != 2 or (bias is not None and constant(module, bias) is None) or node.kwargs:
        return False
    value = x.meta["val"] if isinstance(x, fx.Node) else None
    return isinstance(value, Tensor) and value.ndim >= 2 and value.is_floating_point()
