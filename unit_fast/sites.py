"""Where the activations are: the outputs of nonlinearities, found in a captured graph.

A site gets its name from the module it came from, as torchvision names nodes: ``layer1.0.relu``, and
``layer1.0.relu_1`` for the second use of a shared module. A functional activation is named after its operator within
the module that calls it. Gates that are bounded anyway (sigmoid, softmax, tanh) are no sites, nor are divisors that are
kept from zero (the norm in F.normalize).
"""

import copy
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from unit_fast.capture import module_path
from unit_fast.errors import CaptureError, UnitFastWarning
from unit_fast.fusion.rewrite import call, constant, set_constant, tidy
from unit_fast.kernels import ops as _ops  # registers unit_fast::clamp_bound

_aten = torch.ops.aten
clamp_bound = torch.ops.unit_fast.clamp_bound.default
assert _ops is not None


@dataclass(frozen=True)
class Site:
    """A place where a bound applies.

    Attributes:
        name: unique in the model; after the module where there is one.
        node: name of the graph node whose output is bounded.
        shape: of one sample's activation, without the batch dimension, e.g. (C, H, W).
        channel_axis: of the batched activation: 1 after a convolution, -1 after a linear layer.
        activation: the nonlinearity, e.g. "relu", "relu6", "elu", "gelu".
    """

    name: str
    node: str
    shape: tuple[int, ...]
    channel_axis: int
    activation: str


def _hardtanh_name(node: fx.Node) -> str:
    limits = (*node.args[1:], *(-1.0, 1.0)[len(node.args) - 1 :])
    return "relu6" if limits == (0, 6) else "hardtanh"


def _clamp_name(node: fx.Node) -> str | None:
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max")
    if not isinstance(low, int | float):
        return None
    if high is None and low > 0 and _divides(node):
        return None
    if high is None:
        return "relu" if low == 0 else "threshold"
    return "relu6" if (low, high) == (0, 6) else "hardtanh"


def _divides(node: fx.Node) -> bool:
    """Whether a value is only divided by, as the norm in F.normalize: a lower limit keeps it from zero, no more."""
    for user in node.users:
        divisor = user.target in (_aten.div.Tensor, _aten.true_divide.Tensor) and node not in user.args[:1]
        inverse = user.target in (_aten.reciprocal.default, _aten.rsqrt.default)
        shaped = user.target in (_aten.expand.default, _aten.view.default, _aten.reshape.default) and _divides(user)
        if not (divisor or inverse or shaped):
            return False
    return True


def _gated_name(node: fx.Node) -> str | None:
    """x * sigmoid(x), x * hardsigmoid(x), x * tanh(softplus(x)) and GELU by its formulas, written out."""
    for value, gate in (node.args[:2], node.args[1::-1]):
        if not isinstance(gate, fx.Node) or not isinstance(value, fx.Node):
            continue
        if gate.target is _aten.sigmoid.default and gate.args[0] is value:
            return "silu"
        if gate.target is _aten.sigmoid.default and _scaled(gate.args[0]) is value:
            return "quick_gelu"
        if gate.target is _aten.hardsigmoid.default and gate.args[0] is value:
            return "hardswish"
        if gate.target is _aten.add.Tensor and 1 in gate.args[1:] and _bends(gate.args[0], _scaled(value)):
            return "gelu"
        inner = gate.args[0] if gate.target is _aten.tanh.default else None
        if isinstance(inner, fx.Node) and inner.target is _aten.softplus.default and inner.args[0] is value:
            return "mish"
    return None


def _scaled(value: Any) -> Any:
    """What ``value`` is a constant multiple of: itself where it is none."""
    if isinstance(value, fx.Node) and value.target is _aten.mul.Tensor and not isinstance(value.args[1], fx.Node):
        return value.args[0]
    return value


_POLYNOMIAL = (_aten.mul.Tensor, _aten.add.Tensor, _aten.div.Tensor, _aten.pow.Tensor_Scalar)


def _bends(value: Any, x: fx.Node) -> bool:
    """Whether ``value`` is tanh or erf of a polynomial of ``x`` alone."""
    if not isinstance(value, fx.Node) or value.target not in (_aten.tanh.default, _aten.erf.default):
        return False
    queue = list(value.all_input_nodes)
    while queue:
        node = queue.pop()
        if node is x:
            continue
        if node.target not in _POLYNOMIAL:
            return False
        queue.extend(node.all_input_nodes)
    return True


def _softplus_name(node: fx.Node) -> str | None:
    return None if all(user.target is _aten.tanh.default for user in node.users) else "softplus"


_NONLINEARITIES: dict[Any, str | Callable[[fx.Node], str | None]] = {
    _aten.relu.default: "relu",
    _aten.relu6.default: "relu6",
    _aten.hardtanh.default: _hardtanh_name,
    _aten.clamp.default: _clamp_name,
    _aten.clamp_min.default: _clamp_name,
    _aten.threshold.default: "threshold",
    _aten.leaky_relu.default: "leaky_relu",
    _aten.rrelu.default: "leaky_relu",
    _aten.prelu.default: "prelu",
    _aten.elu.default: "elu",
    _aten.selu.default: "selu",
    _aten.celu.default: "celu",
    _aten.gelu.default: "gelu",
    _aten.silu.default: "silu",
    _aten.hardswish.default: "hardswish",
    _aten.mish.default: "mish",
    _aten.softplus.default: _softplus_name,
    _aten.glu.default: "glu",
    _aten.mul.Tensor: _gated_name,
}

_CHANNELS_FIRST = re.compile(r"aten\.(conv|_native_batch_norm|batch_norm|max_pool|avg_pool|adaptive|upsample)")
_CHANNELS_LAST = re.compile(r"aten\.(linear|matmul|mm|addmm|bmm|native_layer_norm|layer_norm)")
# Moves channels elsewhere: what lies before says nothing about the axis after it.
_REARRANGES = re.compile(r"aten\.(permute|transpose|reshape|view|flatten|unflatten|movedim|t)\b")


def find_sites(
    module: fx.GraphModule, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] | None = None
) -> tuple[Site, ...]:
    """The sites of a captured graph, in the order in which they run.

    Args:
        module: what :func:`unit_fast.capture.capture` returned.
        include: glob patterns over site names; only sites that match one are kept. All when omitted.
        exclude: glob patterns; sites that match one are dropped.

    Raises:
        CaptureError: there is no site, the filters leave none, or a pattern matches none; names the sites there are.
    """
    nodes = list(module.graph.nodes)
    leaves = _parameterless_leaves(nodes)
    counts: Counter[str] = Counter()
    sites: list[Site] = []
    for node in nodes:
        activation = _activation(node)
        if activation is None:
            continue
        path = module_path(node)
        base = path if path in leaves else f"{path}.{activation}".lstrip(".")
        name = base if not counts[base] else f"{base}_{counts[base]}"
        counts[base] += 1
        batch, *shape = node.meta["val"].shape
        if isinstance(batch, int) or not shape or not all(isinstance(size, int) for size in shape):
            warnings.warn(
                f"site {name} gets no bound: its activation has the shape {(batch, *shape)}; expected the batch in "
                "front and a fixed shape behind it",
                UnitFastWarning,
                stacklevel=2,
            )
            continue
        sites.append(Site(name, node.name, tuple(shape), _channel_axis(node), activation))
    return _filtered(tuple(sites), include, exclude)


def insert_bounds(module: fx.GraphModule, bounds: Mapping[str, Tensor]) -> fx.GraphModule:
    """The sanitised graph: a copy of ``module`` with ``unit_fast::clamp_bound`` at every site named in ``bounds``.

    Args:
        module: a captured graph. The copy shares its weights.
        bounds: by site name, broadcastable to one sample of the site.

    Returns:
        A graph module whose bounds are buffers under ``bounds.`` (dots in site names become slashes).

    Raises:
        CaptureError: ``bounds`` names a site the graph does not have, or a shape that does not fit it.
    """
    sites = {site.name: site for site in find_sites(module)}
    for name, bound in bounds.items():
        if name not in sites:
            raise CaptureError(f"there is no site {name}; the sites are: {', '.join(sites)}")
        if not _broadcasts(tuple(bound.shape), sites[name].shape):
            raise CaptureError(
                f"the bound of site {name} has the shape {tuple(bound.shape)}, which does not broadcast to one sample "
                f"of shape {sites[name].shape}"
            )
    sanitised = copy_graph(module)
    nodes = {node.name: node for node in sanitised.graph.nodes}
    for name, bound in bounds.items():
        node = nodes[sites[name].node]
        path = bound_path(name)
        set_constant(sanitised, path, bound)
        after = node.next
        with sanitised.graph.inserting_before(after):
            reader = sanitised.graph.get_attr(path)
        clamp = call(sanitised, clamp_bound, (node, reader), like=node, before=after)
        clamp.meta["site"] = name
        node.replace_all_uses_with(clamp, delete_user_cb=lambda user, own=clamp: user is not own)
    tidy(sanitised)
    return sanitised


def _broadcasts(shape: tuple[int, ...], sample: tuple[int, ...]) -> bool:
    fits = all(size in (1, full) for size, full in zip(reversed(shape), reversed(sample), strict=False))
    return len(shape) <= len(sample) and fits


def bound_path(site_name: str) -> str:
    """Name of the buffer that holds a site's bound in the sanitised graph."""
    return "bounds." + site_name.replace(".", "/")


def expose_sites(module: fx.GraphModule, sites: Iterable[Site]) -> fx.GraphModule:
    """A copy of ``module`` that returns ``(output, {site name: activation})``.

    The activation is what the rest of the model sees: where a bound was inserted, the clamped one.

    Args:
        module: a captured or a sanitised graph; the copy shares its tensors.
        sites: which activations, each (N, *site.shape).
    """
    exposed = copy_graph(module)
    nodes = {node.name: node for node in exposed.graph.nodes}
    activations = {}
    for site in sites:
        node = nodes[site.node]
        clamps = [user for user in node.users if user.target is clamp_bound]
        activations[site.name] = clamps[0] if clamps else node
    output = next(node for node in exposed.graph.nodes if node.op == "output")
    leaves = list(pytree.tree_leaves(output.args[0]))
    codegen: Any = exposed.graph._codegen
    template = pytree.tree_unflatten(leaves, codegen.pytree_info.out_spec)
    flat, spec = pytree.tree_flatten((template, activations))
    output.args = (tuple(flat),)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    exposed.recompile()
    return exposed


def copy_graph(module: fx.GraphModule) -> fx.GraphModule:
    """A graph module with a graph of its own that shares the tensors of ``module``."""
    graph = fx.Graph()
    copied_output: Any = graph.graph_copy(module.graph, {}, return_output_node=True)
    output, original = copied_output
    graph.output(output).meta = dict(original.meta)
    graph.set_codegen(copy.copy(module.graph._codegen))
    attributes = {str(node.target): constant(module, node) for node in graph.nodes if node.op == "get_attr"}
    copied = fx.GraphModule(attributes, graph, class_name=type(module).__name__)
    copied.meta.update(module.meta)
    copied.eval()
    return copied


def _activation(node: fx.Node) -> str | None:
    if node.op != "call_function":
        return None
    name = _NONLINEARITIES.get(node.target)
    if callable(name):
        name = name(node)
    value = node.meta.get("val")
    if name is None or not isinstance(value, Tensor) or all(isinstance(size, int) for size in value.shape):
        return None  # or computed from constants alone, without the batch
    return name


def _parameterless_leaves(nodes: Iterable[fx.Node]) -> set[str]:
    """Paths of modules that hold no other module and read no tensor, but for an activation's own: nn.ReLU, nn.PReLU."""
    inner: set[str] = set()
    weighted: set[str] = set()
    for node in nodes:
        path = module_path(node)
        if not path or node.op != "call_function":
            continue
        inner.add(path)
        own_tensor = node.target in (_aten.prelu.default, clamp_bound)
        if not own_tensor and any(argument.op == "get_attr" for argument in node.all_input_nodes):
            weighted.add(path)
    parents = {path[:end] for path in inner for end in range(len(path)) if path[end] == "."}
    return inner - weighted - parents


def _channel_axis(node: fx.Node) -> int:
    """1 or -1, by the nearest producer whose layout is known; by rank where there is none."""
    seen: set[fx.Node] = set()
    queue = [node]
    while queue:
        current = queue.pop(0)
        if current in seen:
            continue
        seen.add(current)
        target = str(current.target)
        if _CHANNELS_FIRST.match(target):
            return 1
        if _CHANNELS_LAST.match(target):
            return -1
        if not _REARRANGES.match(target):
            queue.extend(argument for argument in current.all_input_nodes if argument.op == "call_function")
    return 1 if node.meta["val"].ndim >= 4 else -1


def _filtered(
    sites: tuple[Site, ...], include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> tuple[Site, ...]:
    if not sites:
        raise CaptureError(
            "the model has no site: no relu, elu, gelu, silu or other unbounded nonlinearity whose first dimension is "
            "the batch was found in its graph"
        )
    wanted = _patterns(include) or ["*"]
    unwanted = _patterns(exclude)
    kept = tuple(
        site
        for site in sites
        if any(fnmatchcase(site.name, pattern) for pattern in wanted)
        and not any(fnmatchcase(site.name, pattern) for pattern in unwanted)
    )
    names = ", ".join(site.name for site in sites)
    if not kept:
        raise CaptureError(f"include={include!r} and exclude={exclude!r} leave no site; the sites are: {names}")
    for pattern in (*wanted, *unwanted):
        if not any(fnmatchcase(site.name, pattern) for site in sites):
            raise CaptureError(f"{pattern!r} in include or exclude matches no site; the sites are: {names}")
    return kept


def _patterns(patterns: str | Sequence[str] | None) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns or [])
