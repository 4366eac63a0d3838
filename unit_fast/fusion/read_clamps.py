"""graph => the same graph that also returns, per sample and site, what its clamps took away."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from unit_fast.errors import CaptureError
from unit_fast.fusion.rewrite import copy_graph, tidy
from unit_fast.fusion.rows import Rows, find_rows
from unit_fast.sites import clamp_bound

_aten = torch.ops.aten


def clamp_nodes(module: fx.GraphModule) -> list[fx.Node]:
    """The clamps of a sanitised graph, in the order in which they run; ``meta["site"]`` names each one's site."""
    return [node for node in module.graph.nodes if node.target is clamp_bound]


def count_saturated(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a sanitised graph that returns ``(output, counts)``.

    ``counts`` (N, sites) int64 says, per sample and site, how many activations lie above their bound: NaN and ties do
    not. It shares the weights.
    """
    return _with_readings(module, (_COUNT,))


def measure_excess(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a sanitised graph that returns ``(output, counts, excess)``.

    ``counts`` is that of :func:`count_saturated`; ``excess`` (N, sites) float32 says, per sample and site, how far the
    activation furthest above its bound lies above it: 0 where none does, NaN where one is NaN.
    """
    return _with_readings(module, (_COUNT, _EXCESS))


def rows_per_sample(module: fx.GraphModule) -> list[Rows]:
    """Which rows of each clamp's activation belong to one sample, in the order of :func:`clamp_nodes`.

    One where the first dimension is the batch; more where it is the batch times windows, patches, heads or steps.

    Raises:
        CaptureError: no input has the batch in front, or the rows of an activation belong to no one sample.
    """
    shapes = (node.meta["val"].shape for node in module.graph.nodes if node.op == "placeholder" and _is_tensor(node))
    # Of inputs that never meet each has a name of its own for the batch.
    batches = [shape[0].node.expr for shape in shapes if shape and isinstance(shape[0], torch.SymInt)]
    if not batches:
        raise CaptureError(
            "no input of the exported program has a first dimension that is free; expected the batch there, so that "
            "what is clamped can be counted by sample"
        )
    found = find_rows(module, batches)
    for clamp in clamp_nodes(module):
        if clamp not in found:
            raise CaptureError(
                f"site {clamp.meta['site']} has activations whose first dimension is {clamp.meta['val'].shape[0]} "
                f"where the batch is {batches[0]}, and it cannot be told which of them belong to which sample; "
                "expected the batch times windows or steps, so that what is clamped can be counted: leave the site out "
                "of the bounds (exclude=)"
            )
    return [found[clamp] for clamp in clamp_nodes(module)]


def neurons_per_sample(module: fx.GraphModule) -> int:
    """How many activations a sample has at all clamps together: what counts are a share of."""
    clamps = zip(clamp_nodes(module), rows_per_sample(module), strict=True)
    return sum(rows.count * math.prod(clamp.meta["val"].shape[1:]) for clamp, rows in clamps)


@dataclass(frozen=True)
class _Reading:
    """One number a sample and clamp.

    Attributes:
        of_rows: the nodes that compute it of each row, from the activation, the bound and the dimensions of a row.
        of_samples: the node that makes one number a sample of those of its rows, (outer, N, inner).
        finish: the nodes that make what is returned, (N, sites), of the numbers of all clamps.
    """

    of_rows: Callable[[fx.Graph, fx.Node, fx.Node, list[int]], fx.Node]
    of_samples: Callable[[fx.Graph, fx.Node], fx.Node]
    finish: Callable[[fx.Graph, fx.Node], fx.Node]


def _above(graph: fx.Graph, x: fx.Node, bound: fx.Node, dimensions: list[int]) -> fx.Node:
    return _sum(graph, graph.call_function(_aten.gt.Tensor, (x, bound)), dimensions)


def _sum(graph: fx.Graph, values: fx.Node, dimensions: Sequence[int] = (0, 2)) -> fx.Node:
    # In 32 bits: on the CPU the loop that clamps counts on the way then, 16 lanes at a time. In 64, torch's own choice,
    # a mask takes a dozen instructions to widen. A sample of 2³¹ activations at a site has 8 GiB there.
    return graph.call_function(_aten.sum.dim_IntList, (values, list(dimensions)), {"dtype": torch.int32})


def _as_int64(graph: fx.Graph, counts: fx.Node) -> fx.Node:
    return graph.call_function(_aten.to.dtype, (counts, torch.int64))


def _largest_excess(graph: fx.Graph, x: fx.Node, bound: fx.Node, dimensions: list[int]) -> fx.Node:
    distance = graph.call_function(_aten.sub.Tensor, (x, bound))
    return graph.call_function(_aten.amax.default, (distance, dimensions))


def _largest(graph: fx.Graph, values: fx.Node) -> fx.Node:
    return graph.call_function(_aten.amax.default, (values, [0, 2]))


def _at_least_zero(graph: fx.Graph, largest: fx.Node) -> fx.Node:
    positive = graph.call_function(_aten.clamp_min.default, (largest, 0.0))
    return graph.call_function(_aten.to.dtype, (positive, torch.float32))


_COUNT = _Reading(_above, _sum, _as_int64)
_EXCESS = _Reading(_largest_excess, _largest, _at_least_zero)


def _with_readings(module: fx.GraphModule, readings: Sequence[_Reading]) -> fx.GraphModule:
    """A copy that also returns each reading of every clamp, stacked to (N, sites)."""
    rows = rows_per_sample(module)
    changed = copy_graph(module)
    graph = changed.graph
    output = next(node for node in graph.nodes if node.op == "output")
    found: list[list[fx.Node]] = [[] for _ in readings]
    for clamp, rows_here in zip(clamp_nodes(changed), rows, strict=True):
        x, bound = clamp.args
        assert isinstance(x, fx.Node)
        assert isinstance(bound, fx.Node)
        dimensions = list(range(1, clamp.meta["val"].ndim))
        # Before the clamp, which as the last to read the activation may then take its memory.
        with graph.inserting_before(clamp):
            for per_site, reading in zip(found, readings, strict=True):
                value = reading.of_rows(graph, x, bound, dimensions)
                if rows_here.count > 1:
                    shape = [rows_here.outer, -1, rows_here.inner]
                    value = graph.call_function(_aten.reshape.default, (value, shape))
                    value = reading.of_samples(graph, value)
                per_site.append(value)
    with graph.inserting_before(output):
        extra = [
            reading.finish(graph, graph.call_function(_aten.stack.default, (per_site, 1)))
            for per_site, reading in zip(found, readings, strict=True)
        ]
    codegen: Any = graph._codegen
    leaves = list(pytree.tree_leaves(output.args[0]))
    _, spec = pytree.tree_flatten((pytree.tree_unflatten(leaves, codegen.pytree_info.out_spec), *extra))
    output.args = ((*leaves, *extra),)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    tidy(changed)
    return changed


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
