"""Constants in the layout that the kernels read, so that no call copies them."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.fusion.read_clamps import clamp_nodes
from unit_fast.fusion.rewrite import add_constant, constant, set_constant, tidy
from unit_fast.kernels.layout import pack_bound, pack_weight

_aten = torch.ops.aten
_ops = torch.ops.unit_fast

_CONVOLUTIONS: dict[Any, int] = {_ops.conv2d.default: 8, _aten.conv2d.default: 6, _aten.conv2d.padding: 6}
"""Convolutions, with the position of ``groups`` among their arguments."""
_PER_SAMPLE: dict[Any, tuple[int, ...]] = {
    _ops.conv2d.default: (4,),
    _ops.max_pool2d.default: (2,),
    _ops.epilogue.default: (1, 2, 4),
}
"""Operators of ours, with the positions of what they read once a sample."""


def pack_constants(module: fx.GraphModule) -> int:
    """Lay out weights as NHWC and the per-neuron operands of maps as H, W, C; returns how many tensors moved.

    Values and shapes stay. The tensors that ``module`` was given are not touched: it gets new ones, and one that
    several nodes read is moved once.
    """
    moved: dict[tuple[int, ...], fx.Node] = {}
    first = next(iter(module.graph.nodes))
    for node in list(module.graph.nodes):
        for position, packed in _packed(module, node):
            source = node.args[position]
            key = id(constant(module, source)), *packed.stride()
            if key not in moved:
                moved[key] = add_constant(module, f"{source.target}_packed", packed, first)
            args = list(node.args)
            args[position] = moved[key]
            node.args = tuple(args)
    tidy(module)
    return len(moved)


def pack_bounds(module: fx.GraphModule, sites: Collection[str]) -> None:
    """Lay out the bounds of these sites as H, W, C, for whoever reads them along with maps in channels_last.

    Values and shapes stay. The tensors that ``module`` was given are not touched: it gets new ones.
    """
    for clamp in clamp_nodes(module):
        reader = clamp.args[1]
        bound = constant(module, reader)
        if clamp.meta["site"] in sites and isinstance(reader, fx.Node) and bound is not None:
            set_constant(module, str(reader.target), pack_bound(bound))
    module.recompile()


def _packed(module: fx.GraphModule, node: fx.Node) -> Iterator[tuple[int, Tensor]]:
    """The arguments of ``node`` that must lie otherwise, by position."""
    args: tuple[Any, ...] = node.args
    with torch.no_grad():
        if node.target in _CONVOLUTIONS:
            weight = constant(module, args[1])
            groups = args[_CONVOLUTIONS[node.target]] if len(args) > _CONVOLUTIONS[node.target] else 1
            if weight is not None and weight.ndim == 4:
                yield from _if_moved(1, weight, pack_weight(weight, groups))
        elif node.target is _ops.linear.default:
            weight = constant(module, args[1])
            if weight is not None:
                yield from _if_moved(1, weight, weight.contiguous())
        for position in _PER_SAMPLE.get(node.target, ()):
            operand = constant(module, args[position])
            if operand is not None and node.meta["val"].ndim == 4:
                yield from _if_moved(position, operand, pack_bound(operand))


def _if_moved(position: int, before: Tensor, after: Tensor) -> Iterator[tuple[int, Tensor]]:
    if before.stride() != after.stride():
        yield position, after
