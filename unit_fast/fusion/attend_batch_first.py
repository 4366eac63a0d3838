"""Self-attention over (L, N, E), between two transpositions => over (N, L, E), without them.

``torch.nn.MultiheadAttention`` computes with the tokens first. Run operator by operator, every one of its views of
transposed memory is then a copy, and so is the sum after it. The same values come from the batch first: the heads are
views, and only the attention itself moves anything.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from unit_fast.fusion.rewrite import call

_aten = torch.ops.aten
_ATTENTION = _aten.scaled_dot_product_attention.default


class _Match(NamedTuple):
    """What the attention reads and what becomes of it."""

    x: fx.Node  # (N, L, E)
    projection: fx.Node  # the linear layer that gives queries, keys and values
    output: fx.Node  # the linear layer after the heads
    last: fx.Node  # (N, L, E), whose value it all is


def attend_batch_first(module: fx.GraphModule) -> int:
    """Rewrite each self-attention whose transpositions cancel out; returns how many.

    Only the sequence of operators that torch exports is taken, with every value in it read by the next one alone.
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.target is _ATTENTION and (match := _match(node)) is not None:
            _rewrite(module, node, match)
            count += 1
    module.graph.eliminate_dead_code()
    return count


def _rewrite(module: fx.GraphModule, attention: fx.Node, match: _Match) -> None:
    _, heads, length, width = attention.meta["val"].shape

    def add(
        target: torch._ops.OpOverload, *args: Any, like: fx.Node = attention, named: dict[str, Any] | None = None
    ) -> fx.Node:
        node = call(module, target, args, like=like, before=attention)
        node.kwargs = named or {}
        values = fx.map_arg((args, node.kwargs), lambda argument: argument.meta["val"])
        node.meta["val"] = target(*values[0], **values[1])
        return node

    projected = add(_aten.linear.default, match.x, *match.projection.args[1:], like=match.projection)
    split = add(_aten.reshape.default, projected, [-1, length, 3, heads, width])
    ordered = add(_aten.permute.default, split, [2, 0, 3, 1, 4])
    operands = [add(_aten.select.int, ordered, 0, index) for index in range(3)]
    attended = add(_ATTENTION, *operands, *attention.args[3:], named=dict(attention.kwargs))
    joined = add(_aten.reshape.default, add(_aten.transpose.int, attended, 1, 2), [-1, length, heads * width])
    result = add(_aten.linear.default, joined, *match.output.args[1:], like=match.output)
    match.last.replace_all_uses_with(result)
    node: Any = match.last
    while node is not attention:
        node, read = node.args[0], node
        module.graph.erase_node(read)
    module.graph.erase_node(attention)  # by name: with its dropout, which is 0, it does not count as dead code


def _match(attention: fx.Node) -> _Match | None:
    value = attention.meta.get("val")
    if not isinstance(value, Tensor) or value.ndim != 4:
        return None
    _, heads, length, width = value.shape
    if not all(isinstance(size, int) for size in (heads, length, width)):
        return None
    stacks = [_operand(attention, place) for place in range(3)]
    stacked = stacks[0]
    if stacked is None or any(stack is not stacked for stack in stacks) or len(stacked.users) != 3:
        return None
    # squeeze(transpose(unsqueeze(reshape(linear(transpose(x, 0, 1)), (L, N, 3, E)), 0), 0, -2), -2)
    if not _is(stacked, _aten.squeeze.dim, -2):
        return None
    split = _up(stacked.args[0], (_aten.transpose.int, 0, -2), (_aten.unsqueeze.default, 0))
    projection = _shaped(split, (length, None, 3, heads * width))
    if projection is None or projection.target is not _aten.linear.default or len(projection.users) != 1:
        return None
    first = projection.args[0]
    output = _down(_down(attention, _aten.permute.default, [2, 0, 1, 3]), _aten.reshape.default)
    linear = _down(output, _aten.linear.default)
    last = _down(_down(linear, _aten.reshape.default), _aten.transpose.int, 0, 1)
    if not isinstance(first, fx.Node) or not _is(first, _aten.transpose.int, 0, 1) or len(first.users) != 1:
        return None
    x = first.args[0]
    if linear is None or last is None or not isinstance(x, fx.Node) or x.meta["val"].ndim != 3:
        return None
    if output is None or output.meta["val"].shape[-1] != heads * width:
        return None
    if tuple(last.meta["val"].shape[1:]) != (length, heads * width) or x.meta["val"].shape[1] != length:
        return None
    return _Match(x, projection, linear, last)


def _operand(attention: fx.Node, place: int) -> fx.Node | None:
    """The stack (3, L, N, E) whose part ``place`` the attention reads there, as (N, heads, L, width)."""
    _, heads, length, width = attention.meta["val"].shape
    merged = _shaped(attention.args[place], (None, heads, length, width))  # (N·heads, L, width)
    selected = _shaped(_up(merged, (_aten.transpose.int, 0, 1)), (length, None, width))
    if selected is None or selected.meta["val"].ndim != 3 or selected.meta["val"].shape[2] != heads * width:
        return None
    return _up(selected, (_aten.select.int, 0, place))


def _up(node: Any, *steps: tuple[Any, ...]) -> fx.Node | None:
    """What lies before these operators, each read by the next alone."""
    for target, *args in steps:
        if not isinstance(node, fx.Node) or not _is(node, target, *args) or len(node.users) != 1:
            return None
        node = node.args[0]
    return node if isinstance(node, fx.Node) else None


def _shaped(node: Any, shape: tuple[int | None, ...]) -> fx.Node | None:
    """What lies before a reshape to this shape, None being the batch's part in it."""
    if not isinstance(node, fx.Node) or node.target is not _aten.reshape.default or len(node.users) != 1:
        return None
    found = node.meta["val"].shape
    fits = len(found) == len(shape) and all(
        want is None or size == want for size, want in zip(found, shape, strict=True)
    )
    before = node.args[0]
    return before if fits and isinstance(before, fx.Node) else None


def _down(node: fx.Node | None, target: Any, *args: Any) -> fx.Node | None:
    """The operator that alone reads ``node``."""
    user = next(iter(node.users)) if node is not None and len(node.users) == 1 else None
    return user if user is not None and user.args[0] is node and _is(user, target, *args) else None


def _is(node: fx.Node, target: Any, *args: Any) -> bool:
    """Whether ``node`` calls ``target``, with these arguments after the first if any; swapped axes in either order."""
    given = node.args[1:]
    if node.target is not target or (args and len(given) != len(args)):
        return False
    if target is _aten.transpose.int:
        rank = node.meta["val"].ndim
        return {axis % rank for axis in given} == {axis % rank for axis in args}
    return not args or tuple(given) == args
