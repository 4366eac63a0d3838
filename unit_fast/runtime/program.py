"""What a backend is given to run: the sanitised graph, alone and with its saturation counted."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from unit_fast.bounds import Bounds
from unit_fast.fusion.rewrite import tidy
from unit_fast.runtime.calls import Call
from unit_fast.sites import clamp_bound, copy_graph

_aten = torch.ops.aten


@dataclass(frozen=True)
class Program:
    """A sanitised graph as it is to be run.

    Attributes:
        module: the graph on its device and in its dtype: the reference. Never changed by a backend; one that rewrites
            graphs copies it first (``sites.copy_graph``).
        bounds: the bounds in it.
        example: samples like those it will be called with, on its device; floating tensors in any dtype.
    """

    module: fx.GraphModule
    bounds: Bounds
    example: Call

    @cached_property
    def counting(self) -> fx.GraphModule:
        """The same graph returning ``(output, counts)``; see :func:`count_saturated`."""
        return count_saturated(self.module)


def clamp_nodes(module: fx.GraphModule) -> list[fx.Node]:
    """The clamps of a sanitised graph, in the order in which they run; ``meta["site"]`` names each one's site."""
    return [node for node in module.graph.nodes if node.target is clamp_bound]


def count_saturated(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a sanitised graph that returns ``(output, counts)``.

    ``counts`` (N, sites) int64 says, per sample and site, how many activations lie above their bound: NaN and ties do
    not. It shares the weights.
    """
    counting = copy_graph(module)
    nodes = clamp_nodes(counting)
    output = next(node for node in counting.graph.nodes if node.op == "output")
    with counting.graph.inserting_before(output):
        per_site = []
        for node in nodes:
            x, bound = node.args
            above = counting.graph.call_function(_aten.gt.Tensor, (x, bound))
            dimensions = list(range(1, node.meta["val"].ndim))
            per_site.append(counting.graph.call_function(_aten.sum.dim_IntList, (above, dimensions)))
        counts = counting.graph.call_function(_aten.stack.default, (per_site, 1))
    codegen: Any = counting.graph._codegen
    leaves = list(pytree.tree_leaves(output.args[0]))
    _, spec = pytree.tree_flatten((pytree.tree_unflatten(leaves, codegen.pytree_info.out_spec), counts))
    output.args = ((*leaves, counts),)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    tidy(counting)
    return counting
