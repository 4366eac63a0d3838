"""Which rows of an activation belong to which sample, where its first dimension is a multiple of the batch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_RESHAPES = {
    *(_aten.reshape.default, _aten.view.default, _aten._unsafe_view.default),
    *(_aten.flatten.using_ints, _aten.unflatten.int),
}


@dataclass(frozen=True)
class Rows:
    """The rows of an activation lie as (outer, N, inner).

    Windows and patches of a sample lie together, as ``inner``; steps of a sequence that was in front of the batch, and
    copies of the batch that were joined, as ``outer``.
    """

    outer: int = 1
    inner: int = 1

    @property
    def count(self) -> int:
        """How many belong to one sample."""
        return self.outer * self.inner


def find_rows(module: fx.GraphModule, batches: Iterable[sympy.Expr]) -> dict[fx.Node, Rows]:
    """How the rows lie of every tensor whose first dimension is a multiple of one of ``batches``.

    Where it takes more than reshaping, joining and repeating to tell, a tensor is not in it.
    """
    finder = _Finder(tuple(batches))
    for node in module.graph.nodes:
        finder.visit(node)
    return finder.found


class _Finder:
    def __init__(self, batches: tuple[sympy.Expr, ...]) -> None:
        self.found: dict[fx.Node, Rows] = {}
        self._batches = batches
        self._filled: set[fx.Node] = set()  # with rows that are all alike, such as zeros
        self._ratios: dict[sympy.Expr, int | None] = {}

    def visit(self, node: fx.Node) -> None:
        """Tell how the rows of ``node`` lie from those of what it is computed from."""
        shape = _shape(node)
        count = self._ratio(shape[0]) if shape else None
        if count is None:
            return
        if count == 1:
            self.found[node] = Rows()
            return
        alike = {
            self.found.get(argument)
            for argument in node.all_input_nodes
            if _shape(argument) and self._ratio(_shape(argument)[0]) == count and argument not in self._filled
        }
        if not alike and not any(any(map(self._ratio, _shape(argument))) for argument in node.all_input_nodes):
            self._filled.add(node)
            return
        rows = alike.pop() if len(alike) == 1 else None if alike else self._made(node, count)
        if rows is not None and rows.count == count:
            self.found[node] = rows

    def _made(self, node: fx.Node, count: int) -> Rows | None:
        """Of a node that is computed from tensors with another number of rows."""
        if node.target in _RESHAPES:
            return self._reshaped(node.all_input_nodes[0], count)
        if node.target is _aten.cat.default and node.args[1:] in ((), (0,)):
            joined: Any = node.args[0]
            parts = [self.found.get(part) for part in joined]
            if all(part is not None and part.inner == 1 for part in parts):
                return Rows(sum(part.outer for part in parts if part is not None))
        rows = self.found.get(node.all_input_nodes[0])
        if node.target is _aten.repeat.default and rows is not None and rows.inner == 1:
            return Rows(count)
        if node.target is _aten.repeat_interleave.self_int and rows is not None:
            return Rows(rows.outer, count // rows.outer)
        return None

    def _reshaped(self, x: fx.Node, count: int) -> Rows | None:
        shape = _shape(x)
        axis = next((axis for axis, size in enumerate(shape) if self._ratio(size) is not None), None)
        if axis is None or not all(isinstance(size, int) for size in shape[:axis]):
            return None
        rows = self.found.get(x)
        if axis > 0:
            rows = Rows(math.prod(shape[:axis])) if self._ratio(shape[axis]) == 1 else None
        return None if rows is None or count % rows.outer else replace(rows, inner=count // rows.outer)

    def _ratio(self, size: Any) -> int | None:
        if not isinstance(size, torch.SymInt):
            return None
        expression = size.node.expr
        if expression not in self._ratios:
            ratios = (sympy.simplify(expression / batch) for batch in self._batches)
            self._ratios[expression] = next((int(ratio) for ratio in ratios if ratio.is_Integer), None)
        return self._ratios[expression]


def _shape(node: fx.Node) -> tuple[Any, ...]:
    """Of the tensor, or the first of several, that ``node`` gives; empty where it gives none."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else ()
