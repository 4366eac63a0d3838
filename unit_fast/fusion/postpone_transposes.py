"""Transpose -> Linear => Linear -> Transpose, where the axis that the linear layer works on stays in its place."""

from typing import Any, cast

import torch
from torch import Tensor, fx

from unit_fast.fusion.rewrite import call

_aten = torch.ops.aten


def postpone_transposes(module: fx.GraphModule) -> int:
    """Move transpositions from before linear layers to behind them; returns how many layers were rewritten.

    It is for ONNX Runtime 1.32, which ends with a segmentation fault on Transpose → Cast → MatMul with a matrix, if the
    transposition moves the first axis to the last but one, as attention in torch does: it changes the graph for a
    fusion that it then refuses. The casts it inserts itself, where float16 has no kernel. (onnxruntime#28392)
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.target is _aten.linear.default and _order(node.args[0]) is not None:
            _rewrite(module, node)
            count += 1
    return count


def _rewrite(module: fx.GraphModule, linear: fx.Node) -> None:
    source: Any = linear.args[0]
    orders = []
    while (order := _order(source)) is not None:
        orders.append(order)
        source = source.args[0]
    value = linear.meta["val"]
    steps = [value]
    for order in orders:
        value = value.permute([order.index(axis) for axis in range(len(order))])
        steps.append(value)
    result = call(module, _aten.linear.default, (source, *linear.args[1:]), like=linear, before=linear)
    result.meta["val"] = steps.pop()
    while orders:
        result = call(module, _aten.permute.default, (result, orders.pop()), like=linear, before=linear)
        result.meta["val"] = steps.pop()
    linear.replace_all_uses_with(result)
    module.graph.erase_node(linear)


def _order(node: Any) -> list[int] | None:
    """Where the axes of a transposition's result come from, if the last stays in its place; None otherwise."""
    if not isinstance(node, fx.Node) or node.target not in (_aten.transpose.int, _aten.permute.default):
        return None
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    order = list(range(value.ndim))
    if node.target is _aten.permute.default:
        axes: Any = node.args[1]
        order = [axis % value.ndim for axis in axes]
    else:
        first, second = cast("tuple[int, int]", node.args[1:])
        order[first], order[second] = order[second], order[first]
    return order if order[-1] == value.ndim - 1 else None
