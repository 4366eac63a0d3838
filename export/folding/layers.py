"""Layers whose constants can take up a scale: convolutions, linear layers, products and sums with a constant."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.export.folding.scale import along, is_batched, sample_shape
from unit_fast.fusion.operators import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from unit_fast.fusion.rewrite import constant

_aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """A node with constants that can be multiplied.

    Attributes:
        positions: of the constants among the node's arguments.
        weight: the weight of a convolution or linear layer, which may not be shared; None for products and sums, whose
            small constants are copied.
        axis: of one sample, the channels of its input and output; None when a factor may vary along any.
    """

    positions: tuple[int, ...]
    weight: Tensor | None
    axis: int | None


def layer_of(module: fx.GraphModule, node: fx.Node) -> Layer | None:
    """``node`` as a layer; None when it is none, or when its constants are computed."""
    if node.target in CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS or node.target is _aten.linear.default:
        return _weighted(module, node)
    if node.target not in (_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor) or node.kwargs:
        return None
    for position, value in ((1, node.args[0]), (0, node.args[1])):
        fixed = constant(module, node.args[position])
        if fixed is not None and is_batched(value) and _as_sample(fixed, node) is not None:
            # The result must have its shape from the batched value: a factor of its channels is one of the result's.
            same_shape = is_batched(node) and isinstance(value, fx.Node) and sample_shape(value) == sample_shape(node)
            return Layer((position,), None, None) if same_shape else None
    return None


def _weighted(module: fx.GraphModule, node: fx.Node) -> Layer | None:
    weight = constant(module, node.args[1])
    has_bias = len(node.args) > 2 and node.args[2] is not None
    if weight is None or node.kwargs or not is_batched(node.args[0]) or not is_batched(node):
        return None
    if has_bias and constant(module, node.args[2]) is None:
        return None
    positions = (1, 2) if has_bias else (1,)
    value: Any = node.args[0]
    rank = len(sample_shape(value))
    if node.target is _aten.linear.default:
        return Layer(positions, weight, rank - 1)
    return Layer(positions, weight, 0) if rank == weight.ndim - 1 else None


def multiplied(module: fx.GraphModule, node: fx.Node, factor: Tensor | None, scale: Tensor | None) -> dict[int, Tensor]:
    """New constants of a layer, by their position, in the dtype of the old ones.

    Args:
        module: the graph's.
        node: a layer.
        factor: of its results.
        scale: of its input, which its constants are to take up.
    """
    layer = layer_of(module, node)
    assert layer is not None
    old = {position: constant(module, node.args[position]) for position in layer.positions}
    new: dict[int, Tensor] = {}
    for position, tensor in old.items():
        assert tensor is not None
        if layer.weight is None:
            made = _as_sample(tensor, node)
            assert made is not None
            made = made.double()
            made = made if factor is None else made * factor
            new[position] = (made if scale is None else made * scale).to(tensor.dtype)
            continue
        made = tensor.double()
        if position == 1:
            made = _weight(node, made, layer, factor, scale)
        elif factor is not None:
            made = made * along(factor, layer.axis or 0, made.shape[0])
        new[position] = made.to(tensor.dtype).contiguous()
    return new


def _weight(node: fx.Node, weight: Tensor, layer: Layer, factor: Tensor | None, scale: Tensor | None) -> Tensor:
    """``weight`` with rows times ``factor`` and columns times ``scale``."""
    axis = layer.axis or 0
    tail = [1] * (weight.ndim - 2)
    if node.target is _aten.linear.default:
        rows, columns, groups = weight.shape[0], weight.shape[1], 1
    else:
        transposed = node.target in TRANSPOSED_CONVOLUTIONS
        position = 7 - 1 if transposed else 6
        groups = node.args[position] if len(node.args) > position else 1  # type: ignore[assignment]
        if transposed:
            # (C_in, C_out / groups, k...): group g maps rows g of C_in to its own C_out / groups outputs.
            if scale is not None:
                weight = weight * along(scale, axis, weight.shape[0]).reshape(-1, 1, *tail)
            if factor is not None:
                split = along(factor, axis, weight.shape[1] * groups).reshape(groups, 1, -1, *tail)
                weight = (weight.reshape(groups, -1, *weight.shape[1:]) * split).reshape(weight.shape)
            return weight
        rows, columns = weight.shape[0], weight.shape[1] * groups
    # (C_out, C_in / groups, k...): group g maps its own C_in / groups inputs to rows g of C_out.
    if factor is not None:
        weight = weight * along(factor, axis, rows).reshape(-1, 1, *tail)
    if scale is not None:
        split = along(scale, axis, columns).reshape(groups, 1, -1, *tail)
        weight = (weight.reshape(groups, -1, *weight.shape[1:]) * split).reshape(weight.shape)
    return weight


def _as_sample(tensor: Tensor, node: fx.Node) -> Tensor | None:
    """A constant that is broadcast against a batch, with the rank of one sample or less; None when it has a batch."""
    if not tensor.is_floating_point():
        return None
    rank = node.meta["val"].ndim
    if tensor.ndim < rank:
        return tensor
    return tensor[0] if tensor.ndim == rank and tensor.shape[0] == 1 else None
