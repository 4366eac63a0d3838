"""Does the file hold every clamp, as stored? Read from the finished ONNX message alone.

The ONNX checker is not enough: a Clip with a vector for a limit passes it and fails when it runs, and a clamp that an
optimiser dropped leaves a valid file.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from unit_fast.errors import ParityError
from unit_fast.export.forms.form import Clamp, node_name
from unit_fast.export.forms.hard_sigmoid import BETA


def check_structure(
    model: onnx.ModelProto,
    clamps: Sequence[Clamp],
    opset: int,
    integers: Collection[str] = (),
    inspected: bool = False,
) -> dict[str, str]:
    """Check that every site is clamped by exactly what was planned.

    Args:
        model: the file's message, with its tensors loaded.
        clamps: what each site should be clamped by.
        opset: the opset that was asked for.
        integers: sites that are clamped after quantising, by nodes that are not looked at here.
        inspected: whether one subtraction a site should tell what its clamp takes away.

    Returns:
        Name of the clamped activation by site, for sites that have a clamp.

    Raises:
        ParityError: a clamp is missing, doubled, bypassed, of another operator, holds other constants, or is not
            inspected; names the site. Or the opset differs, or operators or functions of our own are left.
    """
    _check_opset(model, opset)
    nodes = defaultdict(list)
    for node in model.graph.node:
        nodes[node.name].append(node)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    readings = _Readings(model, initializers) if inspected else None
    # Activations that are computed twice from the same values become one, which the clamps of both sites read.
    past = Counter(
        name
        for node in model.graph.node
        if not _clamps(node) and not (readings and readings.begin_with(node))
        for name in node.input
    )
    outputs = {value.name for value in model.graph.output}
    expected = [clamp for clamp in clamps if clamp.op is not None]
    elsewhere = {node_name(site) for site in integers}
    found = sum(_clamps(node) and node.name not in elsewhere for node in model.graph.node)
    clamped: dict[str, str] = {}
    for clamp in expected:
        matches = nodes[node_name(clamp.site)]
        if len(matches) != 1 or matches[0].op_type != clamp.op or matches[0].domain:
            raise ParityError(
                f"site {clamp.site}: expected one {clamp.op} node {node_name(clamp.site)}, found "
                f"{[node.op_type for node in matches] or 'none'}"
            )
        node = matches[0]
        _check_limits(clamp, node, initializers)
        source, result = node.input[0], node.output[0]
        if source in outputs or past[source]:
            raise ParityError(f"site {clamp.site}: {past[source]} nodes read the activation past its clamp")
        read_again = readings.check(clamp, source, result) if readings else 0
        if result not in outputs and readers[result] <= read_again:
            raise ParityError(f"site {clamp.site}: nothing reads the clamped activation")
        if clamp.after is not None:
            _check_product(
                clamp, clamp.after, [node for node in model.graph.node if result in node.input], initializers
            )
        clamped[clamp.site] = result
    if found != len(expected):
        raise ParityError(f"the file holds {found} clamps, expected {len(expected)}")
    return clamped


class _Readings:
    """The nodes that tell what clamps take away, as ``excess.py`` puts them beside each."""

    def __init__(self, model: onnx.ModelProto, initializers: Mapping[str, onnx.TensorProto]) -> None:
        self._initializers = initializers
        self._clamps = {tuple(node.input[:1]) + tuple(node.output) for node in model.graph.node if _clamps(node)}
        self._subtractions = [tuple(node.input) for node in model.graph.node if node.op_type == "Sub"]
        self._maxima = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "ReduceMax"}

    def begin_with(self, node: onnx.NodeProto) -> bool:
        """Whether ``node`` reads an activation past its clamp, rightly."""
        if node.op_type == "ReduceMax":
            return any(first == node.output[0] for first, _ in self._subtractions)
        return node.op_type == "Sub" and tuple(node.input) in self._clamps

    def check(self, clamp: Clamp, source: str, result: str) -> int:
        """Raise ParityError unless what ``clamp`` takes away is read once; returns how many read its result for it."""
        behind = self._subtractions.count((source, result))
        of_maxima = [
            limit
            for first, limit in self._subtractions
            if self._maxima.get(first) == source and self._holds(limit, clamp.upper)
        ]
        found = behind + len(of_maxima)
        if found != 1:
            raise ParityError(f"site {clamp.site}: {found} subtractions read what its clamp takes away, expected one")
        return behind

    def _holds(self, name: str, upper: np.ndarray | None) -> bool:
        stored = self._initializers.get(name)
        return stored is not None and upper is not None and numpy_helper.to_array(stored).tobytes() == upper.tobytes()


def _clamps(node: onnx.NodeProto) -> bool:
    return node.name.endswith("/clamp")


def _check_opset(model: onnx.ModelProto, opset: int) -> None:
    imports = {entry.domain: entry.version for entry in model.opset_import}
    if imports != {"": opset}:
        raise ParityError(f"the file imports the operator sets {imports}, expected opset {opset} of ONNX alone")
    if model.functions:
        raise ParityError(f"the file holds {len(model.functions)} functions, expected plain nodes only")


def _check_limits(clamp: Clamp, node: onnx.NodeProto, initializers: dict[str, onnx.TensorProto]) -> None:
    planned = {"Min": [clamp.upper], "HardSigmoid": []}.get(clamp.op or "", [clamp.lower, clamp.upper])
    if clamp.op == "HardSigmoid":
        slopes = {attribute.name: attribute.f for attribute in node.attribute}
        if slopes != {"alpha": clamp.alpha, "beta": BETA}:
            raise ParityError(
                f"site {clamp.site}: HardSigmoid has {slopes}, expected alpha={clamp.alpha} and beta={BETA:g}"
            )
    if len(node.input) != 1 + len(planned):
        raise ParityError(f"site {clamp.site}: {clamp.op} has {len(node.input)} inputs, expected {1 + len(planned)}")
    for name, limit in zip(node.input[1:], planned, strict=True):
        assert limit is not None
        if name not in initializers:
            raise ParityError(f"site {clamp.site}: the limit {name!r} is no constant of the file")
        stored = numpy_helper.to_array(initializers[name])
        if clamp.op == "Clip" and stored.ndim != 0:
            raise ParityError(
                f"site {clamp.site}: Clip's limit {name} has the shape {stored.shape}; expected a scalar, as anything "
                "else fails when it runs"
            )
        _check_same(clamp.site, f"limit {name}", stored, limit)


def _check_product(
    clamp: Clamp, factor: np.ndarray, readers: list[onnx.NodeProto], initializers: dict[str, onnx.TensorProto]
) -> None:
    constants = [name for node in readers for name in node.input if name in initializers]
    if len(readers) != 1 or readers[0].op_type != "Mul" or len(constants) != 1:
        raise ParityError(
            f"site {clamp.site}: {[node.op_type for node in readers]} read the clamp, expected one Mul with the bound"
        )
    _check_same(clamp.site, f"factor {constants[0]}", numpy_helper.to_array(initializers[constants[0]]), factor)


def _check_same(site: str, what: str, stored: np.ndarray, planned: np.ndarray) -> None:
    if stored.shape != planned.shape or stored.dtype != planned.dtype or stored.tobytes() != planned.tobytes():
        raise ParityError(
            f"site {site}: the file's {what} ({stored.dtype}, shape {stored.shape}) differs from the "
            f"stored bound ({planned.dtype}, shape {planned.shape}){_difference(stored, planned)}"
        )


def _difference(stored: np.ndarray, limit: np.ndarray) -> str:
    if stored.shape != limit.shape or not stored.size:
        return ""
    difference = np.abs(stored.astype(np.float64) - limit.astype(np.float64))
    return f" by up to {difference.max():.3g}"
