"""Float graph and quantisers ⇒ the graph in QDQ form.

A spot becomes QuantizeLinear → (Min) → DequantizeLinear; weights and biases are stored as integers before a
DequantizeLinear. Runtimes that know integer kernels join each DequantizeLinear → operator → QuantizeLinear into one;
any other computes the same in float.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from unit_fast.export.quantization.placement import Placement, Spot, data_input
from unit_fast.export.quantization.scales import Float64, Quantizer, mean_shift, quantise_bias, quantise_weight


def insert_quantizers(
    graph: ir.Graph,
    placement: Placement,
    quantizers: Mapping[ir.Value, Quantizer],
    bits: int,
    means: Mapping[ir.Node, Float64],
) -> None:
    """Rewrite ``graph`` in place.

    Args:
        graph: what ``placement`` was made of.
        placement: where to quantise.
        quantizers: of every spot, by its value.
        bits: of weights, 8 or 7.
        means: of what each layer reads, by channel, (C,); biases take back what rounded weights add to it on average.
    """
    weights: dict[tuple[ir.Value, str], ir.Value] = {}
    for node in placement.weighted:
        source = data_input(node)
        _quantise_constants(graph, node, quantizers[source], bits, means.get(node), weights)
    results: dict[ir.Value, ir.Value] = {}
    for spot in placement.spots:
        # What stood before a Relu may have been quantised for its other readers.
        source = results.get(spot.source, spot.source)
        results[spot.value] = _quantise_spot(graph, spot, source, quantizers[spot.value])
    _drop_unused(graph)


def _quantise_spot(graph: ir.Graph, spot: Spot, source: ir.Value, quantizer: Quantizer) -> ir.Value:
    """Put the quantiser behind ``source`` and have the spot's readers read its result, which is returned."""
    name = spot.site or spot.value.name or ""
    # The name of a site's clamp goes to the node that clamps.
    own = {"QuantizeLinear": f"{name}/quantize", "Min": f"{name}/clamp", "DequantizeLinear": f"{name}/dequantize"}
    if spot.site is not None and quantizer.limit is None:
        own["QuantizeLinear"] = f"{name}/clamp"
    scale = constant(graph, f"{name}/scale", quantizer.scale)
    zero_point = constant(graph, f"{name}/zero_point", quantizer.zero_point)
    made = []

    def add(op: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.UINT8) -> ir.Value:
        result = ir.Value(name=f"{own[op]}d", shape=spot.value.shape, type=ir.TensorType(dtype))
        made.append(ir.Node("", op, inputs, outputs=[result], name=own[op]))
        return result

    integers = add("QuantizeLinear", source, scale, zero_point)
    if quantizer.limit is not None:
        integers = add("Min", integers, constant(graph, f"{name}/limit", quantizer.limit))
    result = add("DequantizeLinear", integers, scale, zero_point, dtype=ir.DataType.FLOAT)
    replaced = spot.value
    after = source.producer()
    if after is None:
        graph.insert_before(graph[0], made)
    else:
        graph.insert_after(after, made)
    for use in replaced.uses():
        if use.node is not made[0]:
            use.node.replace_input_with(use.idx, result)
    if replaced.is_graph_output() and not replaced.is_graph_input():
        for index, output in enumerate(graph.outputs):
            if output is replaced:
                graph.outputs[index] = result
        result.name, replaced.name = replaced.name, f"{name}/float"
    elif spot.site is not None:
        result.name, replaced.name = replaced.name, f"{name}/float"
    return result


def _quantise_constants(
    graph: ir.Graph,
    node: ir.Node,
    quantizer: Quantizer,
    bits: int,
    mean: Float64 | None,
    done: dict[tuple[ir.Value, str], ir.Value],
) -> None:
    weight = node.inputs[1]
    assert weight is not None
    axis = _channel_axis(node)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    values = _numpy(weight)
    biases = None if bias is None else _numpy(bias)
    integers, scale = quantise_weight(values, axis, bits, float(quantizer.scale), biases)
    # Layers that share a weight share its integers, where their scales agree.
    key = (weight, scale.tobytes().hex())
    if key not in done:
        done[key] = _dequantised(graph, f"{weight.name}/{len(done)}", integers, scale, axis)
    node.replace_input_with(1, done[key])
    if bias is not None and biases is not None:
        if mean is not None:
            biases = (biases - mean_shift(values, integers, scale, axis, mean)).astype(np.float32)
        steps, bias_scale = quantise_bias(biases, quantizer.scale, scale)
        key = (bias, (bias_scale.tobytes() + steps.tobytes()).hex())
        if key not in done:
            done[key] = _dequantised(graph, f"{bias.name}/{len(done)}", steps, bias_scale, 0)
        node.replace_input_with(2, done[key])


def _dequantised(graph: ir.Graph, name: str, integers: np.ndarray, scale: np.ndarray, axis: int) -> ir.Value:
    inputs = [
        constant(graph, f"{name}/integers", integers),
        constant(graph, f"{name}/scale", scale),
        constant(graph, f"{name}/zero_point", np.zeros(scale.shape, integers.dtype)),
    ]
    result = ir.Value(name=f"{name}/dequantized", shape=ir.Shape(integers.shape), type=ir.TensorType(ir.DataType.FLOAT))
    attributes = [ir.AttrInt64("axis", axis)]
    node = ir.Node("", "DequantizeLinear", inputs, attributes, outputs=[result], name=f"{name}/dequantize")
    # First of all, since layers further on may read it too.
    graph.insert_before(graph[0], node)
    return result


def _channel_axis(node: ir.Node) -> int:
    transposed = node.attributes.get("transB")
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm" and transposed is not None and transposed.as_int():
        return 0
    return 1


def _numpy(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer of ``graph``."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _drop_unused(graph: ir.Graph) -> None:
    """Remove what the quantisers replaced: Relu, Clip and Min before them, and float constants."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]
