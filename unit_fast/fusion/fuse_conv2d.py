"""Conv2d (→ + residual) (→ activation) (→ clamp_bound) => unit_fast::conv2d."""

from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.fusion.rewrite import constant
from unit_fast.fusion.tail import find_tail, replace

_aten = torch.ops.aten


def fuse_conv2d(module: fx.GraphModule) -> int:
    """Fuse what follows each two-dimensional convolution into it; returns how many convolutions became ours.

    Also those that nothing follows: torch adds their bias in a pass of its own. Where two convolutions are added, the
    first in the graph takes the sum, the other is its residual. Left alone: convolutions over unbatched images, with
    weights that are computed, and with "same" padding that is not symmetric; transposed, one- and three-dimensional
    ones.
    """
    fused = 0
    for node in list(module.graph.nodes):
        settings = _settings(module, node)
        if settings is None:
            continue
        tail = find_tail(module, node)
        x, weight, bias, *geometry = settings
        args = (x, weight, bias, tail.residual, tail.bound, *geometry, *tail.act)
        replace(module, (node, *tail.nodes), torch.ops.unit_fast.conv2d.default, args)
        fused += 1
    return fused


def _settings(module: fx.GraphModule, node: fx.Node) -> tuple[Any, ...] | None:
    """x, weight, bias, stride, padding, dilation and groups of a convolution that can be fused."""
    if node.target not in (_aten.conv2d.default, _aten.conv2d.padding):
        return None
    given: list[Any] = list(node.args)
    given.extend((None, 1, 0, 1, 1)[len(given) - 2 :])
    x, weight_node, bias, stride, padding, dilation, groups = given
    weight = constant(module, weight_node)
    if weight is None or (bias is not None and constant(module, bias) is None):
        return None
    value = x.meta["val"] if isinstance(x, fx.Node) else None
    if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point() or node.kwargs:
        return None
    stride, dilation = _pair(stride), _pair(dilation)
    pads = _named_padding(padding, weight, stride, dilation) if isinstance(padding, str) else _pair(padding)
    return None if pads is None else (x, weight_node, bias, stride, pads, dilation, groups)


def _named_padding(name: str, weight: Tensor, stride: list[int], dilation: list[int]) -> list[int] | None:
    if name == "valid":
        return [0, 0]
    total = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
    return [size // 2 for size in total] if stride == [1, 1] and all(size % 2 == 0 for size in total) else None


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values
