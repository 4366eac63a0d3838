"""Carries scales from the bounds they come from to the layers that take them up.

A convolution's result is *open*: whatever reads it may have it in any scale, since the weights can be multiplied. The
site behind it chooses 1 / bound; the sum behind it chooses the scale of the other branch. From a folded site on the
scale is *known* and follows the tensor until a layer takes it up. What can do neither gets a multiplication.
"""

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.export.folding.layers import Layer, layer_of
from unit_fast.export.folding.legality import Foldable, ceiling, judge
from unit_fast.export.folding.movement import keeps_channels, moved, split
from unit_fast.export.folding.plan import Known, Open, Outcome, Plan, label, one
from unit_fast.export.folding.scale import compress, is_batched, ratio, same, sample_shape, varies_only_along
from unit_fast.export.forms.form import check_values
from unit_fast.fusion.rewrite import constant
from unit_fast.sites import clamp_bound

_aten = torch.ops.aten
State = Known | Open


def propagate(
    module: fx.GraphModule,
    limit: float,
    smallest: float,
    largest: float,
    rescale: bool,
    refused: Mapping[str, str],
) -> Plan:
    """Plan how ``module`` is folded, and leave it as it is.

    Args:
        module: a sanitised graph.
        limit: the bound of folded sites.
        smallest: see :class:`unit_fast.export.folding.Folding`.
        largest: likewise.
        rescale: likewise.
        refused: sites that shall not be folded, with the reason.

    Raises:
        ExportError: a bound is NaN or −inf.
    """
    walk = _Walk(module, limit, smallest, largest, rescale, refused)
    for node in module.graph.nodes:
        walk.visit(node)
    return walk.plan


class _Walk:
    def __init__(
        self,
        module: fx.GraphModule,
        limit: float,
        smallest: float,
        largest: float,
        rescale: bool,
        refused: Mapping[str, str],
    ) -> None:
        self.module = module
        self.limit, self.smallest, self.largest = limit, smallest, largest
        self.rescale = rescale
        self.refused = refused
        self.plan = Plan()
        self.states: dict[fx.Node, State] = {}
        self.parts: dict[fx.Node, list[Tensor]] = {}
        self.reads = Counter(
            _identity(tensor)
            for node in module.graph.nodes
            if (tensor := constant(module, node)) is not None
            for _ in node.users
        )
        self.rules: dict[Any, Callable[[fx.Node], State]] = {
            clamp_bound: self._clamp,
            _aten.add.Tensor: self._add,
            _aten.sub.Tensor: self._add,
            _aten.mul.Tensor: self._mul,
            _aten.div.Tensor: self._mul,
            _aten.cat.default: self._cat,
            operator.getitem: self._getitem,
        }

    def visit(self, node: fx.Node) -> None:
        """Find the state of ``node``, whose inputs have theirs."""
        if node.op in ("placeholder", "get_attr"):
            self.states[node] = Known(reason="it reads the model's input")
            return
        if _clamped(node):
            self.states[node] = self._activation(node)
            return
        rule = self.rules.get(node.target)
        if rule is None:
            rule = self._layer if layer_of(self.module, node) else self._move
        self.states[node] = rule(node)

    def known(self, value: fx.Node) -> Known:
        """The settled state of ``value``; one that is still open is settled to no scale."""
        state = self.states[value]
        return Known(reason=f"{label(value)} is not read by it alone") if isinstance(state, Open) else state

    def plain(self, value: fx.Node, reader: fx.Node) -> None:
        """``reader`` needs ``value`` itself."""
        state = self.known(value)
        if state.scale is not None and not same(state.scale, None):
            self.plan.multiply(value, reader, state.scale, state.sites, restores=True)

    def _opaque(self, node: fx.Node) -> Known:
        for value in node.all_input_nodes:
            self.plain(value, node)
        return Known(reason=f"{label(node)} makes its input, which no bound can be folded into")

    def _layer(self, node: fx.Node) -> State:
        layer = layer_of(self.module, node)
        assert layer is not None
        value = node.args[0]
        assert isinstance(value, fx.Node)
        if layer.weight is not None and self.reads[_identity(layer.weight)] > 1:
            self._opaque(node)
            return Known(reason=f"the weights of {label(node)} are shared with another layer")
        state = self.known(value)
        if state.scale is None or varies_only_along(state.scale, layer.axis):
            self.plan.take_up(node, state)
        else:
            self.plain(value, node)
        return self._opened(node, layer)

    def _opened(self, node: fx.Node, layer: Layer) -> State:
        if len(node.users) != 1 or not is_batched(node):
            return Known(reason=f"{label(node)} is read by others too")
        return Open((node,), layer.axis)

    def _move(self, node: fx.Node) -> State:
        value = node.args[0] if node.args else None
        if not isinstance(value, fx.Node) or value not in self.states:
            return self._opaque(node)
        state = self.states[value]
        if isinstance(state, Open):
            if is_batched(node) and keeps_channels(node) and len(node.users) == 1 and state.axis in (0, None):
                # A factor that varies within a channel does not pass a pooling.
                return Open(state.layers, 0 if len(sample_shape(node)) > 1 else state.axis)
            return self._opaque(node)
        if state.scale is None:
            return self._opaque(node)
        parts = split(node, state.scale)
        if parts is not None and all(user.target is operator.getitem for user in node.users):
            self.parts[node] = parts
            return state
        scale = moved(node, state.scale)
        return self._opaque(node) if scale is None else Known(scale, state.sites, _moved_reason(node))

    def _getitem(self, node: fx.Node) -> State:
        source, index = node.args
        assert isinstance(source, fx.Node)
        if source not in self.parts:
            return self._opaque(node)
        state = self.states[source]
        assert isinstance(state, Known)
        assert isinstance(index, int)
        return Known(self.parts[source][index], state.sites, _moved_reason(node))

    def _cat(self, node: fx.Node) -> State:
        values: Any = node.args[0]
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        states = [self.known(value) for value in values]
        if all(state.scale is None for state in states) or not is_batched(node) or not all(map(is_batched, values)):
            return self._opaque(node)
        axis = dim % node.meta["val"].ndim - 1
        if axis < 0:
            return self._opaque(node)
        scales = [
            (one() if state.scale is None else state.scale).expand(sample_shape(value))
            for state, value in zip(states, values, strict=True)
        ]
        scale = compress(torch.cat(scales, axis), sample_shape(node))
        return Known(scale, frozenset().union(*(state.sites for state in states)), _moved_reason(node))

    def _mul(self, node: fx.Node) -> State:
        left, right = node.args
        if isinstance(left, int | float) and node.target is _aten.mul.Tensor:
            left, right = right, left
        if not isinstance(left, fx.Node) or node.kwargs:
            return self._opaque(node)
        if isinstance(right, int | float):
            state = self.states[left]
            if isinstance(state, Open) and len(node.users) == 1:
                return state
            state = self.known(left)
            return Known(state.scale, state.sites, _moved_reason(node), state.is_sum)
        assert isinstance(right, fx.Node)
        layer = layer_of(self.module, node)
        if layer is not None:
            value = left if constant(self.module, left) is None else right
            self.plan.take_up(node, self.known(value))
            return self._opened(node, layer)
        if node.target is _aten.div.Tensor or not is_batched(left) or not is_batched(right):
            return self._opaque(node)
        first, second = self.known(left), self.known(right)
        if len(sample_shape(left)) != len(sample_shape(right)) or (first.scale is None and second.scale is None):
            return self._opaque(node)
        scale = (one() if first.scale is None else first.scale) * (one() if second.scale is None else second.scale)
        return Known(scale, first.sites | second.sites, _moved_reason(node))

    def _add(self, node: fx.Node) -> State:
        left, right = node.args
        if node.kwargs or not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
            return self._opaque(node)
        layer = layer_of(self.module, node)
        if layer is not None:
            return self._shift(node, left if constant(self.module, left) is None else right)
        if not (is_batched(left) and is_batched(right)) or sample_shape(left) != sample_shape(right):
            return self._opaque(node)
        return self._join(node, left, right)

    def _shift(self, node: fx.Node, value: fx.Node) -> State:
        state = self.states[value]
        if isinstance(state, Open) and len(node.users) == 1:
            return Open((*state.layers, node), state.axis)
        state = self.known(value)
        if state.scale is not None:
            self.plan.settle(Open((node,), None), 1 / state.scale, state.sites)
        return Known(state.scale, state.sites, state.reason or _moved_reason(node), state.is_sum)

    def _join(self, node: fx.Node, left: fx.Node, right: fx.Node) -> State:
        first, second = self.states[left], self.states[right]
        if isinstance(first, Open) and isinstance(second, Open):
            axes = {first.axis, second.axis} - {None}
            if len(node.users) == 1 and len(axes) < 2:
                return Open((*first.layers, *second.layers), next(iter(axes), None))
        for this, other in ((first, second), (second, first)):
            if not isinstance(this, Open) or not isinstance(other, Known) or other.scale is None:
                continue
            if varies_only_along(other.scale, this.axis):
                self.plan.settle(this, 1 / other.scale, other.sites)
                return Known(other.scale, other.sites, "it is a residual sum", is_sum=True)
        known, beside = self.known(left), self.known(right)
        if known.scale is None or beside.scale is None:
            self._opaque(node)
            return Known(reason="it is a residual sum", is_sum=True)
        if not same(known.scale, beside.scale):
            self.plan.multiply(right, node, ratio(beside.scale, known.scale), beside.sites, restores=True)
        return Known(known.scale, known.sites, "it is a residual sum", is_sum=True)

    def _activation(self, node: fx.Node) -> State:
        """An activation that only a clamp reads."""
        clamp = next(iter(node.users))
        site = clamp.meta["site"]
        verdict = self._verdict(node, clamp)
        outcome = self._folded(node, site, verdict) if isinstance(verdict, Foldable) else verdict
        if isinstance(outcome, Known):
            self.plan.activations.append(node)
            zero = isinstance(verdict, Foldable) and bool((verdict.factor == 0).any())
            self._record(clamp, True, outcome.reason, outcome.scale, zero)
            return Known(outcome.scale, frozenset([site]), "it reads another site")
        self._record(clamp, False, outcome, None)
        return self._move(node)

    def _verdict(self, node: fx.Node, clamp: fx.Node) -> Foldable | str:
        bound = constant(self.module, clamp.args[1])
        assert bound is not None
        check_values(clamp.meta["site"], bound.numpy())
        if clamp.meta["site"] in self.refused:
            return self.refused[clamp.meta["site"]]
        shape = sample_shape(node)
        return judge(compress(bound, shape), ceiling(node), self.limit, self.smallest, self.largest)

    def _folded(self, node: fx.Node, site: str, verdict: Foldable) -> Known | str:
        value = node.args[0]
        assert isinstance(value, fx.Node)
        state = self.states[value]
        if isinstance(state, Open):
            if not varies_only_along(verdict.factor, state.axis):
                return "its bounds differ from neuron to neuron, the weights before it from channel to channel only"
            self.plan.settle(state, verdict.factor, [site])
            layers = " and ".join(label(layer) for layer in state.layers if layer.target is not _aten.add.Tensor)
            return Known(verdict.scale, reason=f"folded into {layers}")
        if not state.is_sum:
            return state.reason
        factor = verdict.factor * (one() if state.scale is None else state.scale)
        if bool((factor == 1).all()):
            return Known(verdict.scale, reason="folded: the residual sum has its scale already")
        if not self.rescale:
            return "it is a residual sum, which would have to be multiplied"
        self.plan.multiply(value, node, factor, frozenset([site]), restores=False)
        return Known(verdict.scale, reason="folded, with one multiplication of the residual sum")

    def _clamp(self, node: fx.Node) -> State:
        value = node.args[0]
        assert isinstance(value, fx.Node)
        if node.meta["site"] not in self.plan.sites:
            verdict = self._verdict(value, node)
            self._record(node, False, verdict if isinstance(verdict, str) else "its activation has other readers", None)
        outcome = self.plan.sites[node.meta["site"]]
        state = self.known(value)
        if outcome.folded:
            self.plan.bounds[node] = torch.tensor(self.limit, dtype=torch.float64)
        elif state.scale is not None:
            bound = constant(self.module, node.args[1])
            assert bound is not None
            self.plan.bounds[node] = bound.double() / state.scale
            self._record(node, False, outcome.reason, state.scale)
        return Known(state.scale, state.sites, "it reads another site")

    def _record(self, clamp: fx.Node, folded: bool, reason: str, scale: Tensor | None, zero: bool = False) -> None:
        size = 1
        for length in sample_shape(clamp):
            size *= length
        self.plan.sites[clamp.meta["site"]] = Outcome(folded, reason, scale, size, zero)


def _clamped(node: fx.Node) -> bool:
    """Whether ``node`` is an activation that a clamp alone reads."""
    return ceiling(node) is not None and [user.target for user in node.users] == [clamp_bound]


def _identity(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def _moved_reason(node: fx.Node) -> str:
    return f"{label(node)} makes its input, which no bound can be folded into"
