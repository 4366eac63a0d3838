"""Conv or Linear -> BatchNorm => Conv or Linear; any other BatchNorm => multiply, add."""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.fusion.operators import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from unit_fast.fusion.rewrite import add_constant, call, constant

_aten = torch.ops.aten


def fold_batch_norm(module: fx.GraphModule) -> int:
    """Fold every BatchNorm in evaluation mode into the convolution or linear layer before it; returns how many went.

    One that follows anything else, or whose producer is read by others too, becomes a scale and a shift per channel.
    The arithmetic is done in float64 and rounded once.
    """
    folded = 0
    for node in list(module.graph.nodes):
        if node.target is _aten._native_batch_norm_legit_no_training.default:
            scale, shift = _scale_and_shift(module, node)
            producer = node.args[0]
            if not _fold_into(module, producer, node, scale, shift):
                _as_scale_and_shift(module, node, scale, shift)
            folded += 1
    return folded


def _scale_and_shift(module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    _, weight_node, bias_node, mean_node, variance_node, _, epsilon = node.args
    mean, variance = constant(module, mean_node), constant(module, variance_node)
    assert mean is not None, "a BatchNorm in evaluation mode reads its running mean from the module"
    assert variance is not None, "a BatchNorm in evaluation mode reads its running variance from the module"
    weight, bias = constant(module, weight_node), constant(module, bias_node)
    scale = torch.rsqrt(variance.double() + float(epsilon))  # type: ignore[arg-type]
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double()
    return scale, shift


def _fold_into(module: fx.GraphModule, producer: Any, norm: fx.Node, scale: Tensor, shift: Tensor) -> bool:
    if not isinstance(producer, fx.Node) or len(producer.users) != 1:
        return False
    is_linear = producer.target is _aten.linear.default and producer.meta["val"].ndim == 2
    if not is_linear and producer.target not in CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS:
        return False
    weight_node = producer.args[1]
    weight = constant(module, weight_node)
    bias_node = producer.args[2] if len(producer.args) > 2 else producer.kwargs.get("bias")
    bias = constant(module, bias_node)
    if weight is None or (bias_node is not None and bias is None):
        return False
    if producer.target in TRANSPOSED_CONVOLUTIONS:
        groups = producer.args[6] if len(producer.args) > 6 else 1
        # (C_in, C_out / groups, k...): output channel = group * (C_out / groups) + index.
        per_group = scale.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)  # type: ignore[arg-type, operator]
        factor = per_group.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.ndim - 2))
    else:
        factor = scale.reshape(-1, *[1] * (weight.ndim - 1))
    folded_weight = (weight.double() * factor).to(weight.dtype)
    folded_bias = (shift if bias is None else bias.double() * scale + shift).to(weight.dtype)
    path = str(weight_node.target)  # type: ignore[union-attr]
    prefix = path.rpartition(".")[0]
    new_weight = add_constant(module, f"{prefix}.folded_weight".lstrip("."), folded_weight, producer)
    new_bias = add_constant(module, f"{prefix}.folded_bias".lstrip("."), folded_bias, producer)
    producer.args = (producer.args[0], new_weight, new_bias, *producer.args[3:])
    producer.kwargs = {key: value for key, value in producer.kwargs.items() if key != "bias"}
    _replace_first_output(module, norm, producer)
    return True


def _as_scale_and_shift(module: fx.GraphModule, norm: fx.Node, scale: Tensor, shift: Tensor) -> None:
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    value = source.meta["val"]
    shape = (-1, *[1] * (value.ndim - 2))
    stack = norm.meta.get("nn_module_stack")
    prefix = list(stack.values())[-1][0] if stack else "batch_norm"
    first, second = (
        add_constant(module, f"{prefix}.{name}".lstrip("."), tensor.to(value.dtype).reshape(shape), norm)
        for name, tensor in (("scale", scale), ("shift", shift))
    )
    like = next(user for user in norm.users if user.target is operator.getitem and user.args[1] == 0)
    scaled = call(module, _aten.mul.Tensor, (source, first), like, norm)
    _replace_first_output(module, norm, call(module, _aten.add.Tensor, (scaled, second), like, norm))


def _replace_first_output(module: fx.GraphModule, norm: fx.Node, value: fx.Node) -> None:
    for user in list(norm.users):
        if user.target is operator.getitem and user.args[1] == 0:
            user.replace_all_uses_with(value)
            module.graph.erase_node(user)
    if not norm.users:
        module.graph.erase_node(norm)
