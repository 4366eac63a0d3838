"""Activations of more than one number: the largest of several values, and a value beside its gate."""

import operator
from typing import Any

import torch
from torch import fx

from unit_fast.elementwise import is_batched
from unit_fast.fusion.operators import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS

_aten = torch.ops.aten


def joined_name(node: fx.Node) -> str | None:
    """What ``node`` is called if it is the larger of two values, or F.glu written out, of two halves or two layers,
    or a swish whose slope is computed (Meta-ACON, Ma et al., 2021).

    So is the largest of several, where a dimension holds what competes: pieces of a layer, layers stacked (maxout,
    Goodfellow et al., 2013), lines with slopes that are computed (dynamic ReLU, Chen et al., 2020). The largest over
    channels or places otherwise is pooling, or what a softmax takes off.
    """
    if _is_largest_of_several(node):
        return "maximum"
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
            if half.target is _aten.mul.Tensor and value in half.args:
                return "silu"
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


def _is_largest_of_several(node: fx.Node) -> bool:
    largest: Any = node.args[0] if node.target is operator.getitem and node.args[1] == 0 else node
    # With the dimension kept it is what the values are compared with, as in a softmax.
    if largest.target not in (_aten.max.dim, _aten.amax.default) or len(largest.args) != 2:
        return False
    values, dims = largest.args
    first, *others = dims if isinstance(dims, list) else [dims]
    axis = first % values.meta["val"].ndim
    return not others and any(holds(values, axis) for holds in (_holds_layers, _holds_pieces, _holds_lines))


def _holds_layers(values: Any, axis: int) -> bool:
    """Whether ``values`` are layers stacked along ``axis``."""
    if values.target is not _aten.stack.default:
        return False
    tensors, dim = values.args if len(values.args) == 2 else (*values.args, 0)
    return dim % values.meta["val"].ndim == axis and all(_layer_of(tensor) is not None for tensor in tensors)


def _holds_pieces(values: Any, axis: int) -> bool:
    """Whether ``values`` are a layer whose channels were split in two dimensions, of which ``axis`` is one."""
    if values.target not in (_aten.reshape.default, _aten.unflatten.int) or _layer_of(values.args[0]) is None:
        return False
    whole, split = values.args[0].meta["val"].shape, values.meta["val"].shape
    channels = len(whole) - 1 if values.args[0].target is _aten.linear.default else 1
    others = (split[1:channels], split[channels + 2 :]) == (whole[1:channels], whole[channels + 1 :])
    return len(split) == len(whole) + 1 and others and axis in (channels, channels + 1)


def _holds_lines(values: Any, axis: int) -> bool:
    """Whether ``axis`` is that of the slopes which numbers without it were multiplied by."""
    while values.target is _aten.add.Tensor:
        values = values.args[0]
    factors = [factor for factor in values.all_input_nodes if factor.target is _aten.unsqueeze.default]
    return values.target is _aten.mul.Tensor and any(
        factor.args[1] % factor.meta["val"].ndim == axis - values.meta["val"].ndim + factor.meta["val"].ndim
        for factor in factors
    )
