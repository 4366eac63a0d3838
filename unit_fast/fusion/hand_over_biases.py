"""conv2d(y, …) with the residual conv2d(x, …) + bias => the bias of the residual goes into that of the sum."""

from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.fusion.rewrite import add_constant, constant

_conv2d = torch.ops.unit_fast.conv2d.default


def hand_over_biases(module: fx.GraphModule) -> int:
    """Let the epilogue that adds two convolutions add both their biases; returns how many were handed over.

    A convolution on a shortcut then has nothing left to do after it, not even a bias. Only where nothing else reads it,
    and nothing lies between it and the sum. The sum of the biases is rounded once, to their dtype.
    """
    handed = 0
    for node in list(module.graph.nodes):
        shortcut: Any = node.args[3] if node.target is _conv2d else None
        if not isinstance(shortcut, fx.Node) or shortcut.target is not _conv2d or len(shortcut.users) != 1:
            continue
        if node.args.count(shortcut) != 1:  # it is what the convolution reads, too
            continue
        given: Any = shortcut.args
        _, _, bias_node, residual, bound, *_, act, _ = given
        bias = constant(module, bias_node)
        if bias is None or residual is not None or bound is not None or act != "identity":
            continue
        own = constant(module, node.args[2])
        total = bias if own is None else _sum(own, bias)
        node.args = (*node.args[:2], add_constant(module, f"{bias_node.target}_of_both", total, node), *node.args[3:])
        shortcut.args = (*shortcut.args[:2], None, *shortcut.args[3:])
        handed += 1
    return handed


def _sum(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() + b.double()).to(a.dtype).detach()
