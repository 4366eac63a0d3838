"""Narrow the range before an activation to where its clamped result still changes.

An ELU flattens everything far below 0 to −1 and its bound everything above: integers spent there are lost to the part
that matters. After narrowing, the quantiser before the activation saturates where the activation would anyway.
"""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

from unit_fast.export.quantization.placement import ACTIVATIONS, Spot, data_input, is_clamp, only_reader
from unit_fast.export.quantization.ranges import Range
from unit_fast.export.quantization.scales import LEVELS, Quantizer

_POINTS = 4096


def activation_after(spot: Spot) -> ir.Node | None:
    """The activation that alone reads ``spot``, and takes nothing but it and scalars; None otherwise."""
    reader = only_reader(spot.value)
    if reader is None or reader.op_type not in ACTIVATIONS or reader.domain:
        return None
    constants = [value.const_value for value in reader.inputs[1:] if value is not None]
    scalars = all(tensor is not None and tensor.size == 1 for tensor in constants)
    return reader if scalars and data_input(reader) is spot.value else None


def clamped_result(activation: ir.Node) -> ir.Value:
    """What ``activation`` gives, after its clamp where it has one."""
    reader = only_reader(activation.outputs[0])
    return reader.outputs[0] if reader is not None and is_clamp(reader) else activation.outputs[0]


def narrowed(activation: ir.Node, opset: int, seen: Range, result: Quantizer) -> Range:
    """The part of ``seen`` outside of which ``activation``, quantised by ``result``, gives what its ends give."""
    points = np.linspace(seen.lower, seen.upper, _POINTS, dtype=np.float32)
    integers = np.rint(_evaluate(activation, opset, points) / result.scale) + int(result.zero_point)
    integers = np.clip(integers, 0, LEVELS if result.limit is None else result.limit.max())
    changes = np.flatnonzero(np.diff(integers))
    if not changes.size:
        return seen
    return Range(float(points[changes[0]]), float(points[changes[-1] + 1]))


def _evaluate(activation: ir.Node, opset: int, points: np.ndarray) -> np.ndarray:
    node = ir.serde.serialize_node(activation)
    inputs = [helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, [None])]
    outputs = [helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, [None])]
    constants = [
        onnx.numpy_helper.from_array(value.const_value.numpy(), value.name)
        for value in activation.inputs[1:]
        if value is not None and value.const_value is not None
    ]
    graph = helper.make_graph([node], "activation", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    (found,) = ReferenceEvaluator(model).run(None, {node.input[0]: points})
    return np.asarray(found)
