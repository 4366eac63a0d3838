"""Activations of more than one number: the larger of several values, and a value beside its gate."""

import operator
from typing import Any

import torch
from torch import fx

from unit_fast.elementwise import is_batched
from unit_fast.fusion.operators import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS

_aten = torch.ops.aten


def joined_name(node: fx.Node) -> str | None:
    """What ``node`` is called if it is the larger of two values, or F.glu written out, of two halves or two layers."""
    both = [value for value in node.args if isinstance(value, fx.Node) and is_batched(value)]
    if len(both) != 2 or len(node.args) != 2:
        return None
    if node.target in (_aten.maximum.default, _aten.max.other):
        return "maximum"
    for value, gate in (both, both[::-1]):
        if node.target is _aten.mul.Tensor and gate.target is _aten.sigmoid.default:
            (half,) = gate.all_input_nodes
            if half is not value and any(
                of(half) is not None and of(half) is of(value) for of in (_part_of, _layer_of)
            ):
                return "glu"
    return None


def _part_of(node: fx.Node) -> fx.Node | None:
    """The tensor, or the list of its parts, that ``node`` is a part of."""
    whole: Any = node
    while whole.target in (operator.getitem, _aten.slice.Tensor, _aten.select.int):
        whole = whole.args[0]
    return whole if whole is not node else None


def _layer_of(node: fx.Node) -> Any:
    """What ``node`` is a convolution or linear layer of."""
    layer = node.target is _aten.linear.default or node.target in CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS
    return node.args[0] if layer else None
