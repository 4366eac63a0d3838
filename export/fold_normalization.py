"""The file takes images in [0, 1] and normalises them itself: x ⇒ (x − mean) / std, folded into the first layers.

1 / std always goes into the weights of the convolutions that read the input. The mean goes into their biases where they
pad nothing; a border padded with zeros is not a border padded with the mean, so there a subtraction stays.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.export.errors import ExportError
from unit_fast.export.flat import FlatGraph
from unit_fast.export.folding.layers import layer_of, multiplied
from unit_fast.export.normalization import Normalization
from unit_fast.fusion.rewrite import add_constant, call, constant, copy_graph, tidy

_aten = torch.ops.aten
_CONVOLUTIONS = {
    _aten.conv1d.default: 0,
    _aten.conv2d.default: 0,
    _aten.conv3d.default: 0,
    _aten.conv1d.padding: "valid",
    _aten.conv2d.padding: "valid",
    _aten.conv3d.padding: "valid",
}


def normalise(graph: FlatGraph, normalization: Normalization) -> FlatGraph:
    """``graph`` called with images in [0, 1]; its example is taken back to them.

    Raises:
        ExportError: the model's only input is no batch of images, or has another number of channels.
    """
    if len(graph.inputs) != 1 or graph.inputs[0].ndim < 3 or not graph.inputs[0].is_floating_point():
        raise ExportError(
            f"normalization needs a model whose one input is (N, C, …); this one takes {graph.input_names}"
        )
    image = graph.inputs[0]
    channels = image.shape[1]
    if {len(normalization.mean), len(normalization.std)} - {1, channels}:
        raise ExportError(
            f"normalization has {max(len(normalization.mean), len(normalization.std))} numbers, the input {channels} "
            "channels; expected one number each, or one a channel"
        )
    mean, std = (_column(values, image) for values in (normalization.mean, normalization.std))
    module = copy_graph(graph.module)
    placeholder = next(node for node in module.graph.nodes if node.op == "placeholder")
    first = next(node for node in module.graph.nodes if node.op not in ("placeholder", "get_attr"))
    readers = list(placeholder.users)
    shifted = call(
        module, _aten.sub.Tensor, (placeholder, add_constant(module, "input.mean", mean, first)), placeholder, first
    )
    scaled = call(
        module, _aten.mul.Tensor, (shifted, add_constant(module, "input.scale", 1 / std, first)), placeholder, first
    )
    for reader in readers:
        reader.replace_input_with(placeholder, scaled)
    tidy(module)
    return replace(graph, module=module, inputs=(image * std + mean,))


def fold_normalisation(graph: FlatGraph) -> FlatGraph:
    """Fold what :func:`normalise` put into ``graph`` into the layers that read it, as far as that is legal."""
    module = copy_graph(graph.module)
    scaled = next(node for node in module.graph.nodes if _reads(node, "input.scale"))
    shifted: Any = scaled.args[0]
    readers = list(scaled.users)
    layers = [layer_of(module, reader) for reader in readers]
    if any(layer is None or layer.weight is None or layer.axis != 0 for layer in layers) or _shared(module, readers):
        return graph
    mean, scale = (constant(module, node.args[1]) for node in (shifted, scaled))
    assert mean is not None
    assert scale is not None
    padded = any(_pads(reader) for reader in readers)
    for reader in readers:
        _take_up(module, reader, scale.double(), None if padded else mean.double())
    scaled.replace_all_uses_with(shifted if padded else shifted.args[0])
    tidy(module)
    return replace(graph, module=module)


def _take_up(module: fx.GraphModule, layer: fx.Node, scale: Tensor, mean: Tensor | None) -> None:
    """W·(x − mean)·scale + b = (W·scale)·x + (b − Σ W·scale·mean)."""
    weight = multiplied(module, layer, None, scale)[1]
    old: Any = layer.args[1]
    if mean is not None:
        groups: Any = layer.args[6] if len(layer.args) > 6 else 1
        # (C_out, C_in / groups, k...): every group of outputs reads its own channels of the mean.
        means = mean.reshape(-1).expand(weight.shape[1] * groups).reshape(groups, 1, -1)
        totals = weight.double().flatten(2).sum(2).reshape(groups, -1, weight.shape[1])
        bias = constant(module, layer.args[2]) if len(layer.args) > 2 else None
        shift = -(totals * means).sum(2).reshape(-1)
        shift = shift if bias is None else shift + bias.double()
        node = add_constant(module, f"{old.target}_shift", shift.to(weight.dtype), layer)
        layer.args = (layer.args[0], old, node, *layer.args[3:])
    layer.update_arg(1, add_constant(module, f"{old.target}_normalised", weight, layer))


def _column(values: tuple[float, ...], image: Tensor) -> Tensor:
    return torch.tensor(values, dtype=image.dtype).reshape(-1, *[1] * (image.ndim - 2))


def _reads(node: fx.Node, path: str) -> bool:
    return any(value.op == "get_attr" and value.target == path for value in node.all_input_nodes)


def _shared(module: fx.GraphModule, readers: list[fx.Node]) -> bool:
    """Whether a layer that is no reader, or another reader, has the weights of one."""
    read = Counter(
        tensor.data_ptr()
        for node in module.graph.nodes
        if (tensor := constant(module, node)) is not None
        for _ in node.users
    )
    weights = [constant(module, reader.args[1]) for reader in readers]
    return any(weight is not None and read[weight.data_ptr()] > 1 for weight in weights)


def _pads(layer: fx.Node) -> bool:
    """Whether a convolution reads beyond the borders of its input; assumed of all that are not plain convolutions."""
    if layer.target not in _CONVOLUTIONS:
        return True
    padding: Any = layer.args[4] if len(layer.args) > 4 else _CONVOLUTIONS[layer.target]
    return padding not in (0, "valid") and any(padding)
