"""(a + b →) (activation →) clamp_bound, and a + b → activation => unit_fast::epilogue."""

from typing import Any

import torch
from torch import fx

from unit_fast.fusion.tail import activation_of, clamp_after, clamps, find_tail, replace, summands


def fuse_epilogue(module: fx.GraphModule) -> int:
    """Turn what the other passes have left into single passes over memory; returns how many.

    An addition or an activation alone stays: it is one pass already. A clamp alone is two, a comparison and a choice.
    """
    fused = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.users:
            continue
        matched = _addition(module, node) or _activation(module, node) or _clamp(module, node)
        if matched is not None:
            nodes, args = matched
            replace(module, nodes, torch.ops.unit_fast.epilogue.default, args)
            fused += 1
    return fused


_Match = tuple[list[fx.Node], tuple[Any, ...]] | None


def _addition(module: fx.GraphModule, node: fx.Node) -> _Match:
    pair = summands(node)
    tail = find_tail(module, node, residual=False)
    if pair is None or not tail.nodes:
        return None
    return [node, *tail.nodes], (pair[0], None, None, pair[1], tail.bound, *tail.act)


def _activation(module: fx.GraphModule, node: fx.Node) -> _Match:
    activation = activation_of(node)
    clamp = clamp_after(module, node)
    if activation is None or clamp is None:
        return None
    act = activation.name, list(activation.args)
    return [*activation.nodes, clamp], (activation.source, None, None, None, clamp.args[1], *act)


def _clamp(module: fx.GraphModule, node: fx.Node) -> _Match:
    if not clamps(module, node):
        return None
    x, bound = node.args
    return [node], (x, None, None, None, bound, "identity", [])
