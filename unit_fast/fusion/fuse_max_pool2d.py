"""(conv2d with bias, activation and bound →) max_pool2d => bare conv2d → unit_fast::max_pool2d with them."""

from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.fusion.rewrite import tidy
from unit_fast.fusion.tail import replace

_aten = torch.ops.aten
_conv2d = torch.ops.unit_fast.conv2d.default


def fuse_max_pool2d(module: fx.GraphModule, absorb: bool = True) -> int:
    """Let our kernel do each max pooling of a batch of maps; returns how many.

    With ``absorb`` it also takes the epilogue of a convolution that it alone reads, so that the large map before it is
    written once and read once. Not for a graph that counts saturation: windows overlap, and a value would be counted
    several times. To be applied after ``fuse``.
    """
    fused = 0
    for node in list(module.graph.nodes):
        settings = _settings(node)
        if settings is None:
            continue
        x, *window = settings
        tail: tuple[Any, ...] = (None, None, "identity", [])
        meta = {}
        if absorb and isinstance(x, fx.Node) and x.target is _conv2d and len(x.users) == 1 and x.args[3] is None:
            inputs, weight, bias, _, bound, *geometry, act, act_args = x.args
            tail = bias, bound, act, act_args
            x.args = (inputs, weight, None, None, None, *geometry, "identity", [])
            meta = {"fused": (*x.meta["fused"][1:], "max_pool2d")}
            x.meta["fused"] = x.meta["fused"][:1]
            if "site" in x.meta:
                meta["site"] = x.meta.pop("site")
        bias, bound, act, act_args = tail
        target = torch.ops.unit_fast.max_pool2d.default
        pooled = replace(module, (node,), target, (x, bias, bound, *window, act, act_args))
        pooled.meta.update(meta)
        fused += 1
    tidy(module)
    return fused


def _settings(node: fx.Node) -> tuple[Any, ...] | None:
    """x, kernel size, stride, padding, dilation and whether the size is rounded up, of a pooling that can be ours."""
    value = node.meta.get("val")
    if node.target is not _aten.max_pool2d.default or node.kwargs or not isinstance(value, Tensor):
        return None
    if value.ndim != 4 or not value.is_floating_point():
        return None
    given: list[Any] = list(node.args)
    given.extend(([], 0, 1, False)[len(given) - 2 :])
    x, kernel, stride, padding, dilation, ceil_mode = given
    return x, _pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation), ceil_mode


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values
