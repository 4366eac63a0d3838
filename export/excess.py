"""FlatGraph => the same with one more output: per sample, how far its activations were driven beyond their bounds.

Where every neuron has its bound, a clamp x → clamp → y takes away x − y. Where several share one, their maximum is
taken first, which reads the activation once and leaves little to subtract from. What becomes of it is what
:meth:`unit_fast.runtime.SanitizedModel.inspect` calls "excess".
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from unit_fast.bounds import Bounds
from unit_fast.export.errors import ExportError
from unit_fast.export.flat import FlatGraph
from unit_fast.fusion.read_clamps import clamp_nodes, rows_per_sample
from unit_fast.fusion.rewrite import add_constant, constant, copy_graph, tidy
from unit_fast.fusion.rows import Rows
from unit_fast.threshold import usual_excess

_NAME = "excess"
_aten = torch.ops.aten


@dataclass(frozen=True)
class Excess:
    """What has to be known of a sanitised graph to measure the excess of its samples.

    Attributes:
        usual: by site, what is usual there; only of sites that have a finite bound.
        rows: by site, which rows of its activation belong to one sample.
    """

    usual: Mapping[str, float]
    rows: Mapping[str, Rows]

    @classmethod
    def of(cls, sanitised: fx.GraphModule, bounds: Bounds) -> "Excess":
        """Of the graph that ``bounds`` were inserted in.

        Raises:
            DataError: the bounds hold no clean readings.
            ExportError: no bound is finite.
            CaptureError: the rows of an activation belong to no one sample.
        """
        usual = dict(zip(bounds, usual_excess(bounds).tolist(), strict=True))
        clamps = clamp_nodes(sanitised)
        rows = {node.meta["site"]: count for node, count in zip(clamps, rows_per_sample(sanitised), strict=True)}
        clamped = {site: usual[site] for site in rows if bool(bounds[site].isfinite().any())}
        if not clamped:
            raise ExportError("inspect=True measures how far activations lie above their bounds, and none is finite")
        return cls(clamped, rows)


def with_excess(graph: FlatGraph, excess: Excess) -> FlatGraph:
    """Add the output: (N,) float32, 0 where nothing of the sample is clamped.

    Infinite for a sample with NaN in its input, or infinity unless the example has some; its activations do not tell,
    as runtimes differ on what becomes of NaN.
    """
    module = copy_graph(graph.module)
    clamps = [node for node in clamp_nodes(module) if node.meta["site"] in excess.usual]
    usual = torch.tensor([excess.usual[node.meta["site"]] for node in clamps])
    furthest = [_furthest(module, node, excess.rows[node.meta["site"]]) for node in clamps]
    output = next(node for node in module.graph.nodes if node.op == "output")
    divisor = add_constant(module, "usual_excess", usual, output)
    call = module.graph.call_function
    with module.graph.inserting_before(output):
        joined = call(_aten.clamp_min.default, (call(_aten.cat.default, (furthest, 1)), 0.0))
        worst = call(_aten.amax.default, (call(_aten.div.Tensor, (joined, divisor)), [1]))
        unusable = call(_aten.isnan.default, (worst,))
        for bad in _unusable(module.graph, graph):
            unusable = call(_aten.logical_or.default, (unusable, bad))
        result = call(_aten.masked_fill.Scalar, (worst, unusable, math.inf))
    output.args = ((*output.args[0], result),)
    tidy(module)
    name = _NAME
    while name in (*graph.output_names, *graph.input_names):
        name += "_"
    return replace(graph, module=module, output_names=(*graph.output_names, name), excess=name)


def _furthest(module: fx.GraphModule, clamp: fx.Node, rows: Rows) -> fx.Node:
    """How far the furthest activation of each sample lies above its bound: (N, 1) float32; below 0 where none does."""
    call, value = module.graph.call_function, clamp.meta["val"]
    x, bound = clamp.args
    limits = constant(module, bound)
    assert limits is not None
    sizes = [1] * (value.ndim - 1 - limits.ndim) + list(limits.shape)
    shared = [axis for axis, size in enumerate(sizes, 1) if size == 1 and value.shape[axis] != 1]
    with module.graph.inserting_before(clamp.next):
        if shared:
            found = call(_aten.sub.Tensor, (call(_aten.amax.default, (x, shared, True)), bound))
        else:
            found = call(_aten.sub.Tensor, (x, clamp))
        if value.ndim > 1:
            found = call(_aten.amax.default, (found, list(range(1, value.ndim))))
        if rows.count > 1:
            found = call(_aten.reshape.default, (found, [rows.outer, -1, rows.inner]))
            found = call(_aten.amax.default, (found, [0, 2]))
        found = call(_aten.reshape.default, (found, [-1, 1]))
        if value.dtype != torch.float32:
            found = call(_aten._to_copy.default, (found,), {"dtype": torch.float32})
    return found


def _unusable(graph: fx.Graph, flat: FlatGraph) -> Iterator[fx.Node]:
    """For every floating input, which of its samples hold what is no number: (N,) bool."""
    call = graph.call_function
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for x, example, dynamic in zip(placeholders, flat.inputs, flat.dynamic, strict=True):
        if 0 not in dynamic or not example.is_floating_point() or not example[0].numel():
            continue
        bad = call(_aten.isnan.default, (x,))
        if not bool(example.isinf().any()):  # as masks have
            bad = call(_aten.logical_or.default, (bad, call(_aten.isinf.default, (x,))))
        if example.ndim > 1:
            counted = call(_aten._to_copy.default, (bad,), {"dtype": torch.float32})
            bad = call(_aten.gt.Scalar, (call(_aten.amax.default, (counted, list(range(1, example.ndim)))), 0.5))
        yield bad
