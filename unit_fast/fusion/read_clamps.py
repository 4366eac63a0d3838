"""graph => the same graph that also returns, per sample and site, what its clamps took away."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from unit_fast.fusion.rewrite import tidy
from unit_fast.sites import clamp_bound, copy_graph

_aten = torch.ops.aten


def clamp_nodes(module: fx.GraphModule) -> list[fx.Node]:
    """The clamps of a sanitised graph, in the order in which they run; ``meta["site"]`` names each one's site."""
    return [node for node in module.graph.nodes if node.target is clamp_bound]


def count_saturated(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a sanitised graph that returns ``(output, counts)``.

    ``counts`` (N, sites) int64 says, per sample and site, how many activations lie above their bound: NaN and ties do
    not. It shares the weights.
    """
    return _with_readings(module, (_count,))


def measure_excess(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a sanitised graph that returns ``(output, counts, excess)``.

    ``counts`` is that of :func:`count_saturated`; ``excess`` (N, sites) float32 says, per sample and site, how far the
    activation furthest above its bound lies above it: 0 where none does, NaN where one is NaN.
    """
    return _with_readings(module, (_count, _largest_excess))


Reading = Callable[[fx.Graph, fx.Node, fx.Node, list[int]], fx.Node]


def _count(graph: fx.Graph, x: fx.Node, bound: fx.Node, dimensions: list[int]) -> fx.Node:
    above = graph.call_function(_aten.gt.Tensor, (x, bound))
    return graph.call_function(_aten.sum.dim_IntList, (above, dimensions))


def _largest_excess(graph: fx.Graph, x: fx.Node, bound: fx.Node, dimensions: list[int]) -> fx.Node:
    distance = graph.call_function(_aten.sub.Tensor, (x, bound))
    largest = graph.call_function(_aten.amax.default, (distance, dimensions))
    positive = graph.call_function(_aten.clamp_min.default, (largest, 0.0))
    return graph.call_function(_aten.to.dtype, (positive, torch.float32))


def _with_readings(module: fx.GraphModule, readings: Sequence[Reading]) -> fx.GraphModule:
    """A copy that also returns each reading of every clamp, stacked to (N, sites)."""
    changed = copy_graph(module)
    clamps = clamp_nodes(changed)
    output = next(node for node in changed.graph.nodes if node.op == "output")
    extra: list[fx.Node] = []
    with changed.graph.inserting_before(output):
        for reading in readings:
            per_site = []
            for clamp in clamps:
                x, bound = clamp.args
                assert isinstance(x, fx.Node)
                assert isinstance(bound, fx.Node)
                per_site.append(reading(changed.graph, x, bound, list(range(1, clamp.meta["val"].ndim))))
            extra.append(changed.graph.call_function(_aten.stack.default, (per_site, 1)))
    codegen: Any = changed.graph._codegen
    leaves = list(pytree.tree_leaves(output.args[0]))
    _, spec = pytree.tree_flatten((pytree.tree_unflatten(leaves, codegen.pytree_info.out_spec), *extra))
    output.args = ((*leaves, *extra),)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    tidy(changed)
    return changed
