"""How a scale follows operators that move, pick or average values without mixing channels."""

import re
from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.export.folding.scale import compress, is_batched, sample_shape, varies_only_along

_aten = torch.ops.aten

# f(s · x) = s · f(x) value by value, for s > 0.
_HOMOGENEOUS = {
    _aten.relu.default,
    _aten.leaky_relu.default,
    _aten.prelu.default,
    _aten.neg.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.alias.default,
}
# The same for every channel: the scale may vary along channels only.
_WINDOWS = re.compile(
    r"aten\.((adaptive_)?(max|avg)_pool[123]d|upsample_\w+|reflection_pad[123]d|replication_pad[123]d|constant_pad_nd|pad)\b"
)
_REDUCTIONS = {_aten.mean.dim, _aten.sum.dim_IntList, _aten.amax.default, _aten.amin.default}
_RESHAPES = {
    _aten.reshape.default,
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.flatten.using_ints,
    _aten.unflatten.int,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.unsqueeze.default,
}
_MOVES = {
    _aten.permute.default,
    _aten.transpose.int,
    _aten.slice.Tensor,
    _aten.select.int,
    _aten.index_select.default,
    _aten.flip.default,
    _aten.roll.default,
    _aten.pixel_shuffle.default,
    _aten.pixel_unshuffle.default,
    _aten.channel_shuffle.default,
    _aten.native_channel_shuffle.default,
}
_SPLITS = {_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default}


def keeps_channels(node: fx.Node) -> bool:
    """Whether ``node`` gives for each channel something of that channel alone, in the same place."""
    if node.target in _HOMOGENEOUS:
        return True
    if not _WINDOWS.match(str(node.target)) or len(sample_shape(node)) < 2:
        return False
    return node.target not in (_aten.constant_pad_nd.default, _aten.pad.default) or _pads_places(node)


def _pads_places(node: fx.Node) -> bool:
    """Whether padding adds no channels, and nothing but zeros or copies of what is there."""
    padding: Any = node.args[1]
    given: list[Any] = [*node.args[2:]]
    if node.target is _aten.constant_pad_nd.default:
        given.insert(0, "constant")
    mode, value = given + ["constant", 0][len(given) :]
    return len(padding) // 2 < len(sample_shape(node)) and (mode != "constant" or not value)


def is_sum(node: fx.Node) -> bool:
    """Whether ``node`` adds two tensors of the batch."""
    return node.target is _aten.add.Tensor and all(is_batched(value) for value in node.args)


def moved(node: fx.Node, scale: Tensor) -> Tensor | None:
    """The scale of the result of ``node`` for an input of ``scale``; None when there is none."""
    source = node.args[0]
    if not is_batched(node) or not isinstance(source, fx.Node) or _batch(node) != _batch(source):
        return None
    if node.target in _HOMOGENEOUS:
        return scale
    if keeps_channels(node):
        return scale if varies_only_along(scale, 0) else None
    if node.target in _REDUCTIONS:
        return _reduced(node, scale)
    whole = scale.expand(sample_shape(source)).unsqueeze(0)
    if node.target in _RESHAPES:
        return compress(whole.reshape(sample_shape(node)), sample_shape(node))
    if node.target not in _MOVES or any(argument is not source for argument in node.all_input_nodes):
        return None
    target: Any = node.target
    result = target(whole, *node.args[1:], **node.kwargs)
    return compress(result[0], sample_shape(node)) if result.shape == (1, *sample_shape(node)) else None


def split(node: fx.Node, scale: Tensor) -> list[Tensor] | None:
    """The scales of the parts that ``node`` splits an input of ``scale`` into; None when it is no split by channel."""
    source = node.args[0]
    if node.target not in _SPLITS or not isinstance(source, fx.Node) or len(node.all_input_nodes) > 1:
        return None
    dim: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    if dim % source.meta["val"].ndim == 0:
        return None
    whole = scale.expand(sample_shape(source)).unsqueeze(0)
    target: Any = node.target
    parts = target(whole, *node.args[1:], **node.kwargs)
    return [compress(part[0], tuple(part.shape[1:])) for part in parts]


def _reduced(node: fx.Node, scale: Tensor) -> Tensor | None:
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
    ndim = scale.ndim + 1
    axes = [dim % ndim for dim in ([dims] if isinstance(dims, int) else dims or ())]
    if not axes or 0 in axes or any(scale.shape[axis - 1] > 1 for axis in axes):
        return None
    target: Any = node.target
    result: Tensor = target(scale.unsqueeze(0), *node.args[1:], **node.kwargs)
    return result[0]


def _batch(node: fx.Node) -> str:
    return str(node.meta["val"].shape[0])
