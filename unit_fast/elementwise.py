"""What elementwise parts of a graph compute, found by trying them: activations bend lines, however they are written.

A node that is computed from one other node alone, value by value, is a function of one number. At a few numbers it
tells a ReLU by ``where``, a GELU in any order of its factors and a swish with a learned slope from scaling and gates.
"""

import logging
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from unit_fast.fusion.rewrite import constant
from unit_fast.kernels import ops as _ops  # registers unit_fast::clamp_bound

_logger = logging.getLogger(__name__)
_aten = torch.ops.aten
_clamp_bound = torch.ops.unit_fast.clamp_bound.default
assert _ops is not None

# Beyond 20 activations are straight; exp(80) is still a float32, and 80 cubed a float64.
_FAR = (-80.0, -40.0, -20.0, 20.0, 40.0, 80.0)
_NEAR = torch.linspace(-6, 6, 49, dtype=torch.float64)
_PROBES = torch.cat([torch.tensor(_FAR, dtype=torch.float64), _NEAR])

# A constant of more values is no activation's parameter, but an embedding or a mask: not worth its memory.
_MOST_VALUES = 16384

# Elementwise too, but without torch's tag for it.
_ELEMENTWISE = {
    *(_aten.where.self, _aten.where.ScalarOther, _aten.where.ScalarSelf, _aten.where.Scalar, _aten.masked_fill.Tensor),
    *(_aten._to_copy.default, _aten.type_as.default, _aten.contiguous.default),
    *(_aten.detach.default, _aten.alias.default, _aten.special_expit.default, _aten.special_ndtr.default),
    *(_aten.hardswish.default, _aten.log_sigmoid.default, _clamp_bound),
}

_LARGER = (_aten.maximum.default, _aten.max.other)

_FILLED: dict[Any, Callable[[fx.Node], Any]] = {
    **dict.fromkeys((_aten.zeros.default, _aten.zeros_like.default, _aten.new_zeros.default), lambda _: 0.0),
    **dict.fromkeys((_aten.ones.default, _aten.ones_like.default, _aten.new_ones.default), lambda _: 1.0),
    **dict.fromkeys((_aten.full.default, _aten.full_like.default), lambda node: node.args[1]),
    _aten.new_full.default: lambda node: node.args[2],
}

_KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "hardswish": F.hardswish,
    "mish": F.mish,
    "elu": F.elu,
    "softplus": F.softplus,
}


class _Unknown(Exception):
    """What a node's value depends on cannot be tried."""


class Responses:
    """The values of nodes, visited in the order of the graph, where the node that they are functions of is a probe."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._roots: dict[fx.Node, fx.Node] = {}
        self._values: dict[fx.Node, Tensor] = {}
        self._held: dict[fx.Node, Tensor] = {}  # where they differ from the values
        self._constants: dict[fx.Node, Tensor] = {}
        self._fixed: dict[fx.Node, bool] = {}

    def visit(self, node: fx.Node) -> None:
        """Try ``node`` if it is a function of one other; else what follows is seen as a function of it."""
        batched = [
            argument for argument in node.all_input_nodes if is_batched(argument) and not self._is_fixed(argument)
        ]
        if not _is_elementwise(node):
            return
        larger = node.target in _LARGER and len(node.all_input_nodes) == 2 and len(batched) == 1
        if larger and all(is_batched(value) and not _is_filled(value) for value in node.all_input_nodes):
            return  # by what is batched by its shape only: a site as the larger of two, with that name in bounds
        roots = {self._roots.get(argument, argument) for argument in batched}
        if len(roots) != 1 or not all(root.meta["val"].is_floating_point() for root in roots):
            return
        try:
            value = self._run(node)
            held = self._run(node, held=True) if any(argument in self._held for argument in batched) else None
        # What an operator refuses (float64, a shape of its trace) cannot be tried: it is a root then, as an input is.
        except (_Unknown, RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
            _logger.debug("%s cannot be tried, and is taken for an input of what follows: %r", node, error)
            return
        if value.shape[:1] != _PROBES.shape:  # a constant has brought dimensions in front
            return
        self._roots[node], self._values[node] = roots.pop(), value
        if held is not None:
            self._held[node] = held

    def tried(self, node: fx.Node) -> bool:
        """Whether ``node`` was found to be a function of one other."""
        return node in self._values

    def hold(self, node: fx.Node) -> None:
        """From here on, see ``node`` with a bound too: its largest value for probes close to zero."""
        if node in self._values:
            value = self._held.get(node, self._values[node])
            self._held[node] = torch.minimum(value, value[len(_FAR) :].amax(0))

    def activation(self, node: fx.Node) -> str | None:
        """What ``node`` is called if it is an activation that no bound before it holds: a line that bends, and rises.

        Absolute values, powers and exponentials are none: norms and softmaxes are made of them.
        """
        value = self._values.get(node)
        if value is None or not value.is_floating_point():
            return None
        ends = _Ends(_columns(value))
        bent = ~_same(ends.left, ends.right, 0.01) | _is_bent_between(_columns(value), ends.right)
        found = ends.rise & bent & ~_same(ends.left, -ends.right, 0.01)
        if node in self._held:
            found = found & _Ends(_columns(self._held[node])).rise
        if not found.any():
            return None
        lines = (sign * line for line in self._lines(node) for sign in (1, -1))
        return next(filter(None, (_name(x, value) for x in lines)), "activation")

    def feeds_only(self, node: fx.Node, nodes: set[fx.Node]) -> bool:
        """Whether all that is computed from ``node`` goes through ``nodes``, which are functions of the same."""
        root = self._roots.get(node, node)
        seen, queue = {node}, [node]
        while queue:
            for user in queue.pop().users:
                if user in nodes or user in seen or user.target is _aten._assert_tensor_metadata.default:
                    continue
                if self._roots.get(user) is not root:
                    return False
                seen.add(user)
                queue.append(user)
        return True

    def _lines(self, node: fx.Node) -> Iterator[Tensor]:
        """What ``node`` may be seen as a function of: the values of straight lines that it is computed from."""
        seen, queue = {node}, [node]
        while queue:
            for argument in queue.pop().all_input_nodes:
                if argument in seen or not is_batched(argument) or self._is_fixed(argument):
                    continue
                seen.add(argument)
                value = self._value(argument)
                ends = _Ends(_columns(value))
                if value.is_floating_point() and _same(ends.left, ends.right, 1e-6).all():
                    yield value
                if argument in self._roots:
                    queue.append(argument)

    def _run(self, node: fx.Node, *, held: bool = False) -> Tensor:
        target: Any = node.target
        if target is _clamp_bound:
            return self._value(node.all_input_nodes[0], held=held)
        kwargs = {"dtype": node.kwargs.get("dtype")} if target is _aten._to_copy.default else node.kwargs
        args, kwargs = fx.map_arg((node.args, kwargs), lambda argument: self._value(argument, held=held))
        value: Tensor = target(*args, **kwargs)
        return value

    def _value(self, node: fx.Node, *, held: bool = False) -> Tensor:
        if held and node in self._held:
            return self._held[node]
        if node in self._values:
            return self._values[node]
        if is_batched(node) and not self._is_fixed(node):
            return _PROBES.view(-1, *(1,) * (node.meta["val"].ndim - 1))
        if node not in self._constants:
            self._constants[node] = self._constant(node)
        return self._constants[node]

    def _is_fixed(self, node: fx.Node) -> bool:
        """Whether ``node`` is batched by its shape only: a fill, an expanded constant, or computed from such alone."""
        if node not in self._fixed:
            shaped = _is_expanded(node) or node.target is _aten.type_as.default
            sources = node.all_input_nodes[:1] if shaped else node.all_input_nodes
            computed = shaped or _is_elementwise(node)
            fixed = (not is_batched(source) or self._is_fixed(source) for source in sources)
            self._fixed[node] = _is_filled(node) or (computed and all(fixed))
        return self._fixed[node]

    def _constant(self, node: fx.Node) -> Tensor:
        if _is_filled(node):
            return torch.tensor(float(_FILLED[node.target](node)), dtype=torch.float64)
        if _is_expanded(node):
            return self._value(node.all_input_nodes[0])
        tensor = constant(self._module, node)
        value = node.meta.get("val") if tensor is None else tensor
        if not isinstance(value, Tensor):
            raise _Unknown
        # What is batched by its shape only is kept as what broadcasts to it.
        sources = [self._value(source) for source in node.all_input_nodes] if is_batched(node) else [value]
        shape = torch.broadcast_shapes(*(source.shape for source in sources))  # type: ignore[no-untyped-call]
        if math.prod(shape) > _MOST_VALUES:
            raise _Unknown
        if tensor is not None:
            return tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)
        if node.op != "call_function" or node.target is operator.getitem:
            raise _Unknown
        return self._run(node)


class _Ends:
    """The slopes of ``values`` (probes, functions) on the far left and right, and which rise along a line there."""

    def __init__(self, values: Tensor) -> None:
        lowest, lower, low, high, higher, highest = values[: len(_FAR)]
        self.left, self.right = (lower - lowest) / 40, (highest - higher) / 40
        rises = (self.right > 1e-9) & _same(self.right, (higher - high) / 20, 0.2)
        falls = (self.left < -1e-9) & _same(self.left, (low - lower) / 20, 0.2)
        self.rise = (rises | falls) & values.isfinite().all(0)


def is_batched(node: fx.Node) -> bool:
    """Whether ``node`` is a tensor with a dimension that is not fixed."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not all(isinstance(size, int) for size in value.shape)


def _is_filled(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in _FILLED


def _is_expanded(node: fx.Node) -> bool:
    """Whether ``node`` is what broadcasting would have made of its input."""
    if node.target is _aten.repeat.default:
        tensor, times = cast(tuple[fx.Node, list[Any]], node.args)
        sizes = zip(reversed(tensor.meta["val"].shape), reversed(times), strict=False)
        return all(size == 1 or count == 1 for size, count in sizes)
    return node.target in (_aten.expand.default, _aten.expand_as.default)


def _is_elementwise(node: fx.Node) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    if target is _aten.index_put.default:  # x[x < 0] = 0, but not x[:, 0] = 0
        index = node.all_input_nodes[1].meta.get("val")
        return isinstance(index, Tensor) and index.dtype is torch.bool
    return target in _ELEMENTWISE or (torch.Tag.pointwise in target.tags and not target._schema.is_mutable)


def _same(a: Tensor, b: Tensor, share: float) -> Tensor:
    return (a - b).abs() <= share * torch.maximum(a.abs(), b.abs())


def _is_bent_between(values: Tensor, slope: Tensor) -> Tensor:
    """Which lines of one slope are not straight near zero, as soft thresholds are not; but neither steps nor masks."""
    away = _NEAR != 0
    places, near = _NEAR[away], values[len(_FAR) :][away]
    differences = (near.diff(dim=0) / places.diff()[:, None] - slope).abs()
    straight = (differences[places[1:].abs() > 5] <= 0.01 * slope.abs()).all(0)
    # Of falling ones are made activations that rise: expm1(x) - x for x < 0 in xIELU.
    return straight & (slope > 0) & (differences > 0.05 * slope.abs()).any(0)


def _columns(value: Tensor) -> Tensor:
    return value.double().flatten(1) if value.ndim > 1 else value.double()[:, None]


def _name(x: Tensor, value: Tensor) -> str | None:
    """The activation that ``value`` is a multiple of at ``x``."""
    shape = (x + value).shape
    x, value = _columns(x.expand(shape)), _columns(value.expand(shape))
    lower, upper = ((value[high] - value[low]) / (x[high] - x[low]) for low, high in ((0, 1), (4, 5)))
    left, right = torch.where(x[5] > x[0], lower, upper), torch.where(x[5] > x[0], upper, lower)
    x, value = x[len(_FAR) :], value[len(_FAR) :]
    for name, function in _KNOWN.items():
        # Two of GELU's formulas differ by 5e-4 at most; silu and its likes by 0.06 and more.
        if torch.allclose(value / right, function(x), rtol=0, atol=2e-3):
            return name
    bent = torch.where(x > 0, right * x, left * x)
    return "leaky_relu" if bool((left * right != 0).all()) and torch.allclose(value, bent, atol=2e-3) else None
