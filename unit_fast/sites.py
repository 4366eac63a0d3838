"""Where the activations are: the outputs of nonlinearities, found in a captured graph.

A site gets its name from the module it came from, as torchvision names nodes: ``layer1.0.relu``, and
``layer1.0.relu_1`` for the second use of a shared module. A functional activation is named after its operator within
the module that calls it. What operators do not tell is tried (:mod:`unit_fast.elementwise`). Gates that are bounded
anyway (sigmoid, softmax, tanh) are no sites, nor are divisors that are kept from zero (the norm in F.normalize).
"""

import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from unit_fast.capture import module_path
from unit_fast.elementwise import Responses, is_batched
from unit_fast.errors import CaptureError, UnitFastWarning
from unit_fast.fusion.rewrite import call, copy_graph, set_constant, tidy
from unit_fast.joined import joined_name
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
        channel_axis: of the activation with the batch in front: 1 after a convolution, -1 after a linear layer.
        activation: the nonlinearity, e.g. "relu", "relu6", "elu", "gelu".
        batch_axis: where the batch is in the node's output. It is brought to the front for the clamp, and back.
    """

    name: str
    node: str
    shape: tuple[int, ...]
    channel_axis: int
    activation: str
    batch_axis: int = 0


def _hardtanh_name(node: fx.Node) -> str | None:
    limits = (*node.args[1:], *(-1.0, 1.0)[len(node.args) - 1 :])
    return _relu6_name(node) if limits == (0, 6) else "hardtanh"


def _relu6_name(node: fx.Node) -> str | None:
    """None for the gate relu6(x + 3) / 6, hardsigmoid written out, wherever it is divided."""
    x = node.args[0]
    shifted = isinstance(x, fx.Node) and x.target is _aten.add.Tensor and 3 in x.args[1:]
    scaled = all(user.target in (_aten.mul.Tensor, _aten.div.Tensor) for user in node.users)
    return None if shifted and scaled else "relu6"


def _clamp_name(node: fx.Node) -> str | None:
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max")
    if not isinstance(low, int | float):
        return None
    if high is None and low > 0 and _divides(node):
        return None
    if high is None:
        return "relu" if low == 0 else "threshold"
    return _relu6_name(node) if (low, high) == (0, 6) else "hardtanh"


def _divides(node: fx.Node) -> bool:
    """Whether a value is only divided by, as the norm in F.normalize: a lower limit keeps it from zero, no more."""
    for user in node.users:
        divisor = user.target in (_aten.div.Tensor, _aten.true_divide.Tensor) and node not in user.args[:1]
        inverse = user.target in (_aten.reciprocal.default, _aten.rsqrt.default)
        shaped = user.target in (_aten.expand.default, _aten.view.default, _aten.reshape.default) and _divides(user)
        if not (divisor or inverse or shaped):
            return False
    return True


def _softplus_name(node: fx.Node) -> str | None:
    return None if all(user.target is _aten.tanh.default for user in node.users) else "softplus"


_NONLINEARITIES: dict[Any, str | Callable[[fx.Node], str | None]] = {
    _aten.relu.default: "relu",
    _aten.relu6.default: _relu6_name,
    _aten.hardtanh.default: _hardtanh_name,
    _aten.clamp.default: _clamp_name,
    _aten.clamp_min.default: _clamp_name,
    _aten.clip.default: _clamp_name,
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
    leaves = _parameterless_leaves(module.graph.nodes)
    activations = _activations(module)
    bases = {node: _base_name(module_path(node), activation, leaves) for node, activation in activations.items()}
    names = set(bases.values())
    used: set[str] = set()
    sites: list[Site] = []
    for node, activation in activations.items():
        name = bases[node]
        if name in used:  # a module called relu_1 keeps its name, whatever uses of relu there are
            name = next(new for count in itertools.count(1) if (new := f"{bases[node]}_{count}") not in names)
        names.add(name)
        used.add(name)
        value = node.meta["val"]
        axis = _batch_axis(value)
        if axis is None:
            warnings.warn(
                f"site {name} gets no bound: its activation has the shape {tuple(value.shape)}; expected one dimension "
                "for the batch and a fixed shape besides",
                UnitFastWarning,
                stacklevel=2,
            )
            continue
        shape = tuple(size for position, size in enumerate(value.shape) if position != axis)
        sites.append(Site(name, node.name, shape, _channel_axis(node, axis), activation, axis))
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
        node, axis = nodes[sites[name].node], sites[name].batch_axis
        path = bound_path(name)
        set_constant(sanitised, path, bound)
        after = node.next
        with sanitised.graph.inserting_before(after):
            reader = sanitised.graph.get_attr(path)
        x = _moved(sanitised, node, axis, 0, after)
        clamp = call(sanitised, clamp_bound, (x, reader), like=x, before=after)
        clamp.meta["site"] = name
        own = clamp if x is node else x
        node.replace_all_uses_with(
            _moved(sanitised, clamp, 0, axis, after), delete_user_cb=lambda user, own=own: user is not own
        )
    tidy(sanitised)
    return sanitised


def _batch_axis(value: Tensor) -> int | None:
    """Which dimension of an activation is the batch; None where others vary too, or there is no other."""
    free: list[tuple[int, Any]] = [
        (axis, size) for axis, size in enumerate(value.shape) if isinstance(size, torch.SymInt)
    ]
    if len(free) != 1 or value.ndim == 1:
        return None
    ((axis, size),) = free
    # Of which samples rows are, as of windows, is known in front only.
    return axis if axis == 0 or size.node.expr.is_Symbol else None


def _moved(module: fx.GraphModule, node: fx.Node, axis: int, to: int, before: fx.Node) -> fx.Node:
    """``node`` with dimension ``axis`` where dimension ``to`` is: a view of it, or itself where they are the same."""
    if axis == to:
        return node
    order = list(range(node.meta["val"].ndim))
    order.insert(to, order.pop(axis))
    view = call(module, _aten.permute.default, (node, order), like=node, before=before)
    view.meta["val"] = node.meta["val"].permute(order)
    return view


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
    output = next(node for node in exposed.graph.nodes if node.op == "output")
    for site in sites:
        node = nodes[site.node]
        readers = [reader for user in node.users for reader in (user, *user.users)]
        clamps = [reader for reader in readers if reader.target is clamp_bound and reader.meta["site"] == site.name]
        activations[site.name] = clamps[0] if clamps else _moved(exposed, node, site.batch_axis, 0, output)
    leaves = list(pytree.tree_leaves(output.args[0]))
    codegen: Any = exposed.graph._codegen
    template = pytree.tree_unflatten(leaves, codegen.pytree_info.out_spec)
    flat, spec = pytree.tree_flatten((template, activations))
    output.args = (tuple(flat),)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    exposed.recompile()
    return exposed


def _activations(module: fx.GraphModule) -> dict[fx.Node, str]:
    """Nodes to bound and what they are called: by their operator, or where that says nothing, by what they compute."""
    responses = Responses(module)
    found: dict[fx.Node, str] = {}
    written_out: set[fx.Node] = set()
    for node in module.graph.nodes:
        responses.visit(node)
        if not is_batched(node):
            continue
        known = _NONLINEARITIES.get(node.target)
        name = known(node) if callable(known) else known
        if known is None and not _divides(node):
            if not responses.tried(node):
                name = joined_name(node)
            elif (name := responses.activation(node)) is not None:
                written_out.add(node)
        if name is not None:
            found[node] = name
            responses.hold(node)
    # A bound on what x is multiplied by, such as relu6(x + 3), does nothing that the one behind it does not.
    return {node: name for node, name in found.items() if not responses.feeds_only(node, written_out)}


def _base_name(path: str, activation: str, leaves: set[str]) -> str:
    return path if path in leaves else f"{path}.{activation}".lstrip(".")


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


def _channel_axis(node: fx.Node, batch_axis: int) -> int:
    """Of the activation with the batch in front, as of the node where that has it there."""
    axis, last = _channel_axis_of_node(node), node.meta["val"].ndim - 1
    if batch_axis == 0:
        return axis
    position = axis % (last + 1)
    moved = last if position == batch_axis else position + (position < batch_axis)
    return -1 if moved == last else moved


def _channel_axis_of_node(node: fx.Node) -> int:
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
            "the model has no site: no relu, elu, gelu, silu or other unbounded nonlinearity over a batch was "
            "found in its graph"
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
