"""Is every site clamped by integers, as planned, and within its bound? Read from the finished ONNX message alone."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from unit_fast.errors import ParityError
from unit_fast.export.forms.form import node_name
from unit_fast.export.quantization.scales import LEVELS, Quantizer


@dataclass(frozen=True)
class IntegerClamp:
    """One site's clamp in the int8 file; what the structure check holds the file to.

    Attributes:
        site: name of the site.
        quantizer: its scale, zero point and, where the scale alone does not clamp, the integer limit.
        bound: in float32, broadcasts to one sample.
        reason: why scale or Min.
    """

    site: str
    quantizer: Quantizer
    bound: np.ndarray
    reason: str

    @property
    def form(self) -> str:
        """What the report calls it."""
        return "scale" if self.quantizer.limit is None else "integer min"


def check_integer_clamps(model: onnx.ModelProto, clamps: Sequence[IntegerClamp]) -> dict[str, str]:
    """Check that every one of ``clamps`` stands in the file, alone in the way of its activation.

    Args:
        model: the file's message, with its tensors loaded.
        clamps: of the sites that are quantised.

    Returns:
        Name of the clamped activation, in float, by site.

    Raises:
        ParityError: a clamp is missing, bypassed, holds other constants, or lets more than the bound through.
    """
    view = _View(model)
    return {clamp.site: _check(view, clamp) for clamp in clamps}


class _View:
    """The nodes and constants of a message by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.outputs = Counter(value.name for value in model.graph.output)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            self.nodes[node.name].append(node)
            for name in node.input:
                self.readers[name].append(node)

    def constant(self, name: str) -> np.ndarray | None:
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None


def _check(view: _View, clamp: IntegerClamp) -> str:
    site, planned = clamp.site, clamp.quantizer
    expected = "QuantizeLinear" if planned.limit is None else "Min"
    found = view.nodes[node_name(site)]
    if len(found) != 1 or found[0].op_type != expected or found[0].domain:
        raise ParityError(
            f"site {site}: expected one {expected} node {node_name(site)}, found "
            f"{[node.op_type for node in found] or 'none'}"
        )
    quantize = found[0]
    if planned.limit is not None:
        before = view.nodes[f"{site}/quantize"]
        if [node.op_type for node in before] != ["QuantizeLinear"] or before[0].output[0] != found[0].input[0]:
            raise ParityError(f"site {site}: its Min does not follow a QuantizeLinear")
        quantize = before[0]
        _alone(view, site, quantize.output[0])
        _same(site, "limit", view.constant(found[0].input[1]), planned.limit)
    _same(site, "scale", view.constant(quantize.input[1]), planned.scale)
    _same(site, "zero point", view.constant(quantize.input[2]), planned.zero_point)
    dequantize = _alone(view, site, found[0].output[0])
    if dequantize.op_type != "DequantizeLinear" or dequantize.input[1:] != quantize.input[1:]:
        raise ParityError(f"site {site}: its clamp is not followed by the DequantizeLinear of the same scale")
    _within(clamp)
    return str(dequantize.output[0])


def _alone(view: _View, site: str, name: str) -> onnx.NodeProto:
    """The one node that reads ``name``."""
    readers = view.readers[name]
    if len(readers) != 1 or view.outputs[name]:
        raise ParityError(f"site {site}: {len(readers)} nodes read its integers before they are clamped, expected one")
    return readers[0]


def _same(site: str, what: str, stored: np.ndarray | None, planned: np.ndarray) -> None:
    if stored is None:
        raise ParityError(f"site {site}: its {what} is no constant of the file")
    if stored.dtype != planned.dtype or stored.shape != planned.shape or stored.tobytes() != planned.tobytes():
        raise ParityError(
            f"site {site}: the file's {what} ({stored.dtype}, shape {stored.shape}) differs from the planned "
            f"({planned.dtype}, shape {planned.shape})"
        )


def _within(clamp: IntegerClamp) -> None:
    """What comes out is at most the bound, and an integer limit cuts nothing off that a larger one would keep."""
    quantizer, bound = clamp.quantizer, clamp.bound.astype(np.float64)
    excess = float(np.max(quantizer.largest - bound))
    if excess > 0:
        raise ParityError(f"site {clamp.site}: its integers reach {excess:.3g} above the bound; expected none")
    if quantizer.limit is not None:
        limit = quantizer.limit.astype(np.int32)
        above = quantizer.value(np.minimum(limit + 1, LEVELS).astype(np.uint8))
        early = (limit < LEVELS) & (above <= bound)
        if early.any():
            raise ParityError(
                f"site {clamp.site}: {int(early.sum())} integer limits lie a step or more below the bound"
            )
