"""The fused graph as it is run: its operators called through the dispatcher, with or without counting saturation."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from unit_fast.fusion.fuse import fuse
from unit_fast.fusion.fuse_max_pool2d import fuse_max_pool2d
from unit_fast.fusion.rewrite import tidy
from unit_fast.fusion.rows import Rows
from unit_fast.runtime.flat import FlatGraph
from unit_fast.runtime.packing import pack_constants
from unit_fast.runtime.program import clamp_nodes, rows_per_sample

if TYPE_CHECKING:
    from unit_fast.kernels.dispatch import Choice, Dispatcher
    from unit_fast.kernels.dispatch.problem import Problem

_OPERATORS = {
    torch.ops.unit_fast.conv2d.default: "conv2d",
    torch.ops.unit_fast.linear.default: "linear",
    torch.ops.unit_fast.epilogue.default: "epilogue",
    torch.ops.unit_fast.max_pool2d.default: "max_pool2d",
}


class KernelCall(nn.Module):
    """One operator of the fused graph.

    Attributes:
        site: whose clamp it holds; None for one without.
        fused: the operators it does the work of.
        choices: what runs it, by batch size, as far as it was warmed up.
    """

    def __init__(self, node: fx.Node, dispatcher: "Dispatcher") -> None:
        super().__init__()
        self.site: str | None = node.meta.get("site")
        self.fused: tuple[str, ...] = node.meta["fused"]
        self.choices: dict[int, Choice] = {}
        self._operator: Any = _OPERATORS[node.target]  # type: ignore[index]
        self._dispatcher = dispatcher

    def forward(self, *args: Any, counts: Tensor | None = None) -> Tensor:
        """Compute it."""
        return self._dispatcher.run(self._operator, args, counts)

    def problem(self, args: Sequence[Any]) -> "Problem":
        """What such a call poses."""
        from unit_fast.kernels.dispatch.problem import Problem, complete

        return Problem.of(self._operator, complete(self._operator, args))

    def zeros(self, args: Sequence[Any]) -> Tensor:
        """Zeros in place of what such a call computes."""
        from unit_fast.kernels.ops import UNWRITTEN

        return UNWRITTEN[self._operator](*args).zero_()

    def tune(self, args: Sequence[Any], batch: int) -> None:
        """Choose what runs such a call from now on, by measurement if none is known."""
        from unit_fast.kernels.dispatch import tuning

        with tuning():
            self.choices[batch] = self._dispatcher.choose(self._operator, args)


class KernelGraph:
    """A sanitised graph, fused and packed, over a flat sequence of tensors.

    Args:
        module: the sanitised graph; it stays as it is.
        dispatcher: of the device it is on.
        counting: whether it also returns, last, how many activations lie above their bound: (N, sites) int64, the sites
            in the order in which they run.
    """

    def __init__(self, module: fx.GraphModule, dispatcher: "Dispatcher", counting: bool = False) -> None:
        fused = fuse(module)
        fuse_max_pool2d(fused, absorb=not counting)
        pack_constants(fused)
        self.flat = FlatGraph(fused)
        self._graph = self.flat.module
        self.calls = _with_kernel_calls(self._graph, dispatcher)
        if counting:
            sites = [node.meta["site"] for node in clamp_nodes(module)]
            _count(self._graph, dict(zip(sites, rows_per_sample(module), strict=True)), self.flat.batched_inputs[0])
        tidy(self._graph)

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The graph's outputs; maps of four dimensions run as channels_last."""
        outputs: tuple[Tensor, ...] = self._graph(*(as_channels_last(tensor) for tensor in tensors))
        return outputs

    def tune(self, tensors: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
        """Run once, choosing for every operator what shall run it at this batch size."""

        def tuned(call: KernelCall, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor:
            call.tune(args, batch)
            output: Tensor = call(*args, **options)
            return output

        return self._walk(tensors, tuned)

    def problems(self, tensors: Sequence[Tensor]) -> "list[Problem]":
        """What its operators pose, in their order; zeros stand for what they compute."""
        found: list[Problem] = []

        def noted(call: KernelCall, args: Sequence[Any], _: Mapping[str, Any]) -> Tensor:
            found.append(call.problem(args))
            return call.zeros(args)

        self._walk(tensors, noted)
        return found

    def _walk(
        self,
        tensors: Sequence[Tensor],
        visit: Callable[[KernelCall, Sequence[Any], Mapping[str, Any]], Tensor],
    ) -> tuple[Tensor, ...]:
        """Run with ``visit`` in place of every operator of ours."""
        calls = {id(call): call for call in self.calls}

        class Walk(fx.Interpreter):
            def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
                call = calls.get(id(self.fetch_attr(target)))
                return super().call_module(target, args, kwargs) if call is None else visit(call, args, kwargs)

        outputs: tuple[Tensor, ...] = Walk(self._graph).run(*(as_channels_last(tensor) for tensor in tensors))
        return outputs


def as_channels_last(tensor: Tensor) -> Tensor:
    """A map (N, C, H, W) with its channels innermost in memory; anything else as it is."""
    is_map = tensor.ndim == 4 and tensor.is_floating_point()
    return tensor.contiguous(memory_format=torch.channels_last) if is_map else tensor


def _with_kernel_calls(graph_module: fx.GraphModule, dispatcher: "Dispatcher") -> list[KernelCall]:
    """Let the dispatcher run every operator of ours; torch's own dispatch and its checks are left out that way."""
    calls = []
    for node in list(graph_module.graph.nodes):
        if node.target not in _OPERATORS:
            continue
        call = KernelCall(node, dispatcher)
        calls.append(call)
        path = f"kernels_{len(calls)}"
        graph_module.add_submodule(path, call)
        with graph_module.graph.inserting_before(node):
            replacement = graph_module.graph.call_module(path, node.args)
        replacement.meta = dict(node.meta)
        node.replace_all_uses_with(replacement)
        graph_module.graph.erase_node(node)
    return calls


def _new_counts(tensor: Tensor, rows: int) -> Tensor:
    return torch.zeros((rows, tensor.shape[0]), dtype=torch.int32, device=tensor.device)


def _rows_of(counts: Tensor, start: int, rows: int) -> Tensor:
    return counts[start : start + rows].view(-1)


def _by_sample(counts: Tensor, rows: list[tuple[int, int]]) -> Tensor:
    """Counts of rows, which lie as (outer, N, inner) within a site, as counts of samples: (N, sites)."""
    if len(rows) == len(counts):
        return counts.t().long()
    samples = counts.shape[1]
    starts = itertools.accumulate((outer * inner for outer, inner in rows), initial=0)
    sites = (
        _rows_of(counts, start, outer * inner).view(outer, samples, inner)
        for start, (outer, inner) in zip(starts, rows, strict=False)
    )
    return torch.stack([site.sum((0, 2)) for site in sites], 1)


def _count(graph_module: fx.GraphModule, rows: Mapping[str, Rows], batched: int) -> None:
    """Give every clamp's kernel counts to add to, as many a sample as its site has rows, and return them all."""
    graph = graph_module.graph
    holders = {node.meta["site"]: node for node in graph.nodes if node.op == "call_module" and "site" in node.meta}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        counts = graph.call_function(
            _new_counts, (inputs[batched], sum(rows_here.count for rows_here in rows.values()))
        )
    start = 0
    for site, rows_here in rows.items():
        node = holders[site]
        with graph.inserting_before(node):
            node.kwargs = {"counts": graph.call_function(_rows_of, (counts, start, rows_here.count))}
        start += rows_here.count
    output = next(node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        lie = [(rows_here.outer, rows_here.inner) for rows_here in rows.values()]
        output.args = ((*output.args[0], graph.call_function(_by_sample, (counts, lie))),)
