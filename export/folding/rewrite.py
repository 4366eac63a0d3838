"""Carries out a plan: new constants in float64 rounded once, multiplications inserted, bounds replaced."""

import torch
from torch import Tensor, fx

from unit_fast.export.folding.layers import layer_of, multiplied
from unit_fast.export.folding.plan import Multiplication, Plan
from unit_fast.fusion.rewrite import add_constant, call, constant, tidy

_aten = torch.ops.aten


def apply_plan(module: fx.GraphModule, plan: Plan) -> None:
    """Change ``module``, which shares its tensors with others, as ``plan`` says; no tensor is changed in place."""
    for layer in _layers(plan):
        for position, tensor in multiplied(module, layer, plan.outputs.get(layer), plan.inputs.get(layer)).items():
            old = layer.args[position]
            assert isinstance(old, fx.Node)
            new = add_constant(module, f"{old.target}_scaled", tensor, layer)
            layer.update_arg(position, new)
    for multiplication in plan.multiplications:
        _insert(module, multiplication)
    for activation in plan.activations:
        if activation.target is not _aten.relu.default:
            activation.target, activation.args, activation.kwargs = _aten.relu.default, activation.args[:1], {}
    for clamp, bound in plan.bounds.items():
        old = clamp.args[1]
        assert isinstance(old, fx.Node)
        new = add_constant(module, f"{old.target}_scaled", bound.to(clamp.meta["val"].dtype), clamp)
        clamp.update_arg(1, new)
    tidy(module)


def overflowing_sites(module: fx.GraphModule, plan: Plan) -> set[str]:
    """Sites for which a layer would get constants that are not finite."""
    bad = {layer for layer in _layers(plan) if _may_overflow(module, layer, plan) and _overflows(module, layer, plan)}
    return {site for site, layers in plan.layers_of.items() if layers & bad}


def _may_overflow(module: fx.GraphModule, layer: fx.Node, plan: Plan) -> bool:
    """Whether the largest constant times the largest factors is out of range; spares most layers the real product."""
    found = layer_of(module, layer)
    assert found is not None
    constants = [
        tensor for position in found.positions if (tensor := constant(module, layer.args[position])) is not None
    ]
    largest = max((tensor.abs().max().double().item() for tensor in constants if tensor.numel()), default=0.0)
    for changes in (plan.outputs, plan.inputs):
        if layer in changes:
            largest *= changes[layer].abs().max().item()
    return not largest < torch.finfo(constants[0].dtype).max


def _overflows(module: fx.GraphModule, layer: fx.Node, plan: Plan) -> bool:
    new = multiplied(module, layer, plan.outputs.get(layer), plan.inputs.get(layer))
    return not all(bool(torch.isfinite(tensor).all()) for tensor in new.values())


def _layers(plan: Plan) -> list[fx.Node]:
    return list(dict.fromkeys([*plan.outputs, *plan.inputs]))


def _insert(module: fx.GraphModule, multiplication: Multiplication) -> None:
    value = multiplication.value
    fake = value.meta["val"]
    factor: Tensor = multiplication.factor.to(fake.dtype)
    before = value.next
    while before.op == "placeholder":
        before = before.next
    scale = add_constant(module, f"scales.{value.name}", factor, before)
    product = call(module, _aten.mul.Tensor, (value, scale), like=value, before=before)
    for reader in multiplication.readers:
        reader.replace_input_with(value, product)
