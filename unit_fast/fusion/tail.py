"""The elementwise operators behind a producer that one epilogue can hold: (+ residual) (→ activation) (→ clamp_bound).

Only what is provably the same is taken: every value in between is read by the next operator alone, a residual has
exactly the producer's shape and dtype, a bound is a constant that broadcasts to one sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.fusion.rewrite import call, constant
from unit_fast.kernels import ops as _ops  # registers torch.ops.unit_fast.*

_aten = torch.ops.aten
assert _ops is not None
_clamp_bound = torch.ops.unit_fast.clamp_bound.default


@dataclass(frozen=True)
class Activation:
    """An activation that an epilogue can hold.

    Attributes:
        name: as the operators call it (``act``), with their ``act_args``.
        args: its arguments.
        source: what it is applied to.
        nodes: what computes it, the result last: x · sigmoid(x) is two.
    """

    name: str
    args: tuple[float, ...]
    source: fx.Node
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Tail:
    """What follows a producer; without ``nodes``, nothing that could be fused."""

    residual: fx.Node | None
    activation: Activation | None
    bound: fx.Node | None
    nodes: tuple[fx.Node, ...]

    @property
    def act(self) -> tuple[str, list[float]]:
        """``act`` and ``act_args`` of the operators."""
        return (self.activation.name, list(self.activation.args)) if self.activation else ("identity", [])


def find_tail(module: fx.GraphModule, producer: fx.Node, residual: bool = True) -> Tail:
    """The longest tail behind ``producer``, with or without a residual in it."""
    last, nodes = producer, []
    added = _added_to(producer) if residual else None
    if added is not None:
        last, other = added
        nodes.append(last)
    activation = _activation_after(last)
    if activation is not None:
        nodes.extend(activation.nodes)
        last = activation.nodes[-1]
    clamp = clamp_after(module, last)
    if clamp is not None:
        nodes.append(clamp)
    bound = clamp.args[1] if clamp is not None else None
    assert bound is None or isinstance(bound, fx.Node), "clamp_after has looked"
    return Tail(other if added is not None else None, activation, bound, tuple(nodes))


def clamp_after(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The clamp that alone reads ``node``, if its bound can be fused."""
    user = _only_user(node)
    return user if user is not None and user.args[0] is node and clamps(module, user) else None


def clamps(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` is a clamp to a constant that broadcasts to one sample."""
    if node.target is not _clamp_bound:
        return False
    bound = constant(module, node.args[1])
    return bound is not None and broadcasts_to_sample(bound, node)


def broadcasts_to_sample(operand: Tensor, node: fx.Node) -> bool:
    """Whether ``operand`` broadcasts to one sample of ``node``'s value without enlarging it."""
    sample = node.meta["val"].shape[1:]
    sizes = zip(reversed(operand.shape), reversed(sample), strict=False)
    return operand.ndim <= len(sample) and all(size in (1, full) for size, full in sizes)


def same_shape_and_dtype(first: fx.Node, second: fx.Node) -> bool:
    """Whether two values are alike; symbolic sizes must be written alike, so that nothing is assumed of them."""
    a, b = first.meta.get("val"), second.meta.get("val")
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return [str(size) for size in a.shape] == [str(size) for size in b.shape] and a.dtype == b.dtype


def summands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that ``node`` adds, if both are of its own shape and dtype."""
    if node.target is not _aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return None
    first, second = node.args[:2]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    alike = same_shape_and_dtype(first, node) and same_shape_and_dtype(second, node)
    return (first, second) if alike and node.meta["val"].is_floating_point() else None


def activation_of(node: fx.Node) -> Activation | None:
    """The activation whose result ``node`` is."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return None
    if node.target is _aten.mul.Tensor:
        return _gated(node)
    match = _ACTIVATIONS.get(node.target)
    found = match(*node.args[1:], **node.kwargs) if match is not None else None
    source = node.args[0] if node.args else None
    if found is None or not isinstance(source, fx.Node):
        return None
    return Activation(found[0], found[1], source, (node,))


def replace(
    module: fx.GraphModule, nodes: Sequence[fx.Node], target: torch._ops.OpOverload, args: tuple[Any, ...]
) -> fx.Node:
    """Put a call of ``target`` in the place of ``nodes``, in the order in which they run; returns the new node.

    ``meta["fused"]`` of the new node names what it replaces, ``meta["site"]`` the site whose clamp is among them.
    """
    last = nodes[-1]
    fused = call(module, target, args, like=last, before=last)
    fused.meta["fused"] = tuple(_short_name(node) for node in nodes)
    for node in nodes:
        if "site" in node.meta:
            fused.meta["site"] = node.meta["site"]
    last.replace_all_uses_with(fused)
    for node in reversed(nodes):
        module.graph.erase_node(node)
    return fused


def _short_name(node: fx.Node) -> str:
    name = str(node.target).split(".")[1]
    return {"clamp_bound": "clamp"}.get(name, name)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added_to(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The addition that alone reads ``node``, and its other summand."""
    user = _only_user(node)
    pair = summands(user) if user is not None else None
    if user is None or pair is None or pair[0] is pair[1]:
        return None
    return user, pair[1] if pair[0] is node else pair[0]


def _activation_after(node: fx.Node) -> Activation | None:
    """The activation of ``node``, if nothing else reads ``node``."""
    for user in node.users:
        for result in (user, *user.users):
            activation = activation_of(result)
            if activation is not None and activation.source is node and set(node.users) <= set(activation.nodes):
                return activation
    return None


def _gated(node: fx.Node) -> Activation | None:
    """x · sigmoid(x) and x · hardsigmoid(x), written out."""
    gates: dict[Any, str] = {_aten.sigmoid.default: "silu", _aten.hardsigmoid.default: "hardswish"}
    for value, gate in (node.args[:2], node.args[1::-1]):
        if isinstance(gate, fx.Node) and isinstance(value, fx.Node) and gate.args and gate.args[0] is value:
            name = gates.get(gate.target)
            if name is not None and set(gate.users) == {node}:
                return Activation(name, (), value, (gate, node))
    return None


_Found = tuple[str, tuple[float, ...]] | None


def _clamp(min: Any = None, max: Any = None) -> _Found:
    if min == 0 and max is None:
        return "relu", ()
    return ("hardtanh", (float(min), float(max))) if _is_number(min) and _is_number(max) else None


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> _Found:
    return ("elu", (float(alpha),)) if scale == input_scale == 1 else None


def _rrelu(lower: float = 0.125, upper: float = 1 / 3, training: bool = False, generator: Any = None) -> _Found:  # noqa: ARG001
    return None if training else ("leaky_relu", ((lower + upper) / 2,))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


# By operator: its name and arguments in an epilogue, from its arguments here, called as in its schema; None where those
# are not of a kind that fits.
_ACTIVATIONS: dict[Any, Callable[..., _Found]] = {
    _aten.relu.default: lambda: ("relu", ()),
    _aten.relu6.default: lambda: ("relu6", ()),
    _aten.hardtanh.default: lambda min_val=-1.0, max_val=1.0: ("hardtanh", (float(min_val), float(max_val))),
    _aten.clamp.default: _clamp,
    _aten.clamp_min.default: lambda min: _clamp(min),
    _aten.threshold.default: lambda threshold, value: ("relu", ()) if threshold == value == 0 else None,
    _aten.leaky_relu.default: lambda negative_slope=0.01: ("leaky_relu", (float(negative_slope),)),
    _aten.rrelu.default: _rrelu,
    _aten.elu.default: _elu,
    _aten.gelu.default: lambda approximate="none": ("gelu" if approximate == "none" else "gelu_tanh", ()),
    _aten.silu.default: lambda: ("silu", ()),
    _aten.hardswish.default: lambda: ("hardswish", ()),
}
