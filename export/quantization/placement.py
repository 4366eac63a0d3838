"""Which tensors of the float graph become uint8: as many as let a runtime join everything between two convolutions.

Convolutions, linear layers, and additions, joins and poolings of what convolutions made run on integers. Attention,
normalisation and gates stay float, as do the residual sums of transformers, whose few large values would take the
resolution of all others.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from unit_fast.export.forms.form import scalar

# Their result holds values of their input only, so it has the input's scale, and runtimes run them on integers.
_MOVING = frozenset(
    {"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "DepthToSpace", "SpaceToDepth"}
)
_AVERAGING = frozenset({"AveragePool", "GlobalAveragePool"})
ACTIVATIONS = frozenset(
    {
        "Relu",
        "Clip",
        "Elu",
        "Selu",
        "Celu",
        "LeakyRelu",
        "PRelu",
        "ThresholdedRelu",
        "Gelu",
        "HardSwish",
        "Mish",
        "Swish",
    }
)


@dataclass(frozen=True)
class Spot:
    """One tensor that is quantised.

    Attributes:
        value: the tensor whose readers will get the quantised one.
        source: what is quantised: ``value``, or what stood before the Relu, Clip and Min that the quantiser replaces.
        site: the site whose clamp this is; None at other tensors.
        bound: what the tensor may not exceed, the limit of a Clip included; None where nothing bounds it.
        rectified: whether values below 0 are cut off, so that the zero point is 0.
        same_as: tensors whose quantiser this one shares; several for a join. Empty where it has its own.
    """

    value: ir.Value
    source: ir.Value
    site: str | None = None
    bound: np.ndarray | None = None
    rectified: bool = False
    same_as: tuple[ir.Value, ...] = ()


@dataclass(frozen=True)
class Placement:
    """The spots in the order in which they run, and the nodes whose weights become int8."""

    spots: tuple[Spot, ...]
    weighted: tuple[ir.Node, ...]


def place(graph: ir.Graph, bounds: dict[str, np.ndarray]) -> Placement:
    """Decide what becomes uint8.

    Args:
        graph: an exported float32 graph in the ``min`` form: the node ``<site>/clamp`` is Min(activation, bound).
        bounds: by site.
    """
    nodes = list(graph)
    weighted = tuple(node for node in nodes if _is_weighted(node))
    integer = _integer_branches(graph, nodes)
    wanted: set[ir.Value] = set()
    for node in nodes:
        if _is_weighted(node):
            wanted.add(data_input(node))
        if node.outputs[0] not in integer:
            continue
        if node.op_type == "Conv" or _joins(node, integer):
            wanted.add(_after_rectifier(node.outputs[0]))
        if _joins(node, integer):
            wanted.update(_inputs(node))
    for node in reversed(nodes):
        if node.op_type in _MOVING | _AVERAGING | {"LeakyRelu"} and _read_as_integers(node.outputs[0], wanted):
            source = data_input(node)
            if source in integer or node.op_type in _MOVING:
                wanted.add(source)
    found = [*graph.inputs, *(value for node in nodes for value in node.outputs)]
    return Placement(tuple(_spot(value, integer, bounds) for value in found if value in wanted), weighted)


def _read_as_integers(value: ir.Value, wanted: set[ir.Value]) -> bool:
    """Whether ``value`` is wanted, or the clamped activation that it becomes."""
    return value in wanted or any(is_clamp(reader) and reader.outputs[0] in wanted for reader in value.consumers())


def _integer_branches(graph: ir.Graph, nodes: list[ir.Node]) -> set[ir.Value]:
    """Tensors that come from convolutions by operators that run on integers, or that activations made of those."""
    found = {value for value in graph.inputs if any(node.op_type == "Conv" for node in value.consumers())}
    for node in nodes:
        carried = node.op_type in _MOVING | _AVERAGING | ACTIVATIONS or is_clamp(node)
        if (
            (node.op_type == "Conv" and _is_weighted(node))
            or (carried and data_input(node) in found)
            or _joins(node, found)
            or (is_clamp(node) and any(_is_weighted(reader) for reader in node.outputs[0].consumers()))
        ):
            found.add(node.outputs[0])
    return found


def _joins(node: ir.Node, integer: set[ir.Value]) -> bool:
    return node.op_type in ("Add", "Concat") and not node.domain and all(value in integer for value in _inputs(node))


def _is_weighted(node: ir.Node) -> bool:
    """A convolution or linear layer whose weights and bias are constants."""
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    source, *constants = node.inputs
    if source is None or source.is_initializer() or source.dtype != ir.DataType.FLOAT:
        return False
    if any(value is not None and (not value.is_initializer() or value.const_value is None) for value in constants):
        return False
    weight = constants[0]
    if weight is None or weight.shape is None or len(weight.shape) < 2:
        return False
    if node.op_type == "Gemm":
        bias = constants[1] if len(constants) > 1 else None
        flat = bias is None or (bias.shape is not None and len(bias.shape) == 1)
        plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        return flat and plain and not _flag(node, "transA")
    return node.op_type == "Conv" or len(weight.shape) == 2


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and attribute.as_int() != 0


def data_input(node: ir.Node) -> ir.Value:
    """The first input, which is what the node works on."""
    value = node.inputs[0]
    assert value is not None
    return value


def _inputs(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in node.inputs if value is not None)


def is_clamp(node: ir.Node) -> bool:
    """Whether ``node`` is a site's Min."""
    return node.op_type == "Min" and (node.name or "").endswith("/clamp")


def _ceiling(node: ir.Node | None) -> float | None:
    """The largest value that Relu (+inf) or Clip(x, 0, K) lets through; None when ``node`` is neither."""
    if node is None or node.domain:
        return None
    if node.op_type == "Relu":
        return float("inf")
    if node.op_type == "Clip" and len(node.inputs) > 1:
        lower, upper = scalar(node.inputs[1]), scalar(node.inputs[2]) if len(node.inputs) > 2 else np.asarray(np.inf)
        if lower is not None and lower == 0 and upper is not None and upper > 0:
            return float(upper)
    return None


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, which is no output of the graph; None otherwise."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _after_rectifier(value: ir.Value) -> ir.Value:
    """The clamped activation that a quantiser at ``value`` makes, or ``value`` where no Relu or Clip follows alone."""
    reader = only_reader(value)
    if reader is None or _ceiling(reader) is None:
        return value
    result = reader.outputs[0]
    following = only_reader(result)
    return following.outputs[0] if following is not None and is_clamp(following) else result


def _spot(value: ir.Value, integer: set[ir.Value], bounds: dict[str, np.ndarray]) -> Spot:
    node = value.producer()
    if node is None:
        return Spot(value, value)
    if node.op_type in _MOVING:
        return Spot(value, value, same_as=(data_input(node),))
    if node.op_type == "Concat" and _joins(node, integer):
        return Spot(value, value, same_as=tuple(_inputs(node)))
    site, bound, activation = None, None, value
    if is_clamp(node):
        site = (node.name or "").removesuffix("/clamp")
        bound, activation = bounds[site], data_input(node)
    ceiling = _ceiling(activation.producer())
    if ceiling is not None and (bound is None or not (bound < 0).any()):
        before = activation.producer()
        assert before is not None
        limits = np.asarray(ceiling, np.float32) if bound is None else np.minimum(bound, np.float32(ceiling))
        return Spot(value, data_input(before), site, limits, rectified=True)
    return Spot(value, activation, site, bound)
