"""A layer as torch runs it: its operands, and the calls that providers are made of."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.shapes import Layer
from unit_fast.capture import capture
from unit_fast.kernels.layout import pack_bound, pack_weight
from unit_fast.kernels.reference import activate_ref
from unit_fast.runtime.flat import FlatGraph
from unit_fast.sites import find_sites, insert_bounds


@dataclass(frozen=True)
class Operands:
    """What a layer is given, as each provider wants it."""

    x: Tensor  # channels_last where it is a map
    weight: Tensor  # channels_last, for the library
    packed: Tensor  # as our kernels read it
    bias: Tensor
    residual: Tensor | None
    bound: Tensor | None  # per neuron, packed

    def arguments(self, layer: Layer, *, packed: bool) -> tuple[Any, ...]:
        """In the order of the operator's schema."""
        weight = self.packed if packed else self.weight
        return (self.x, weight, self.bias, self.residual, self.bound, *layer.options)


def operands_of(layer: Layer, batch: int, device: str, dtype: torch.dtype, seed: int) -> Operands:
    """Random operands: sums of unit variance; about a fifth of the outputs saturate."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    layout = torch.channels_last if layer.operator == "conv2d" else torch.contiguous_format
    weight = draw(*layer.weight) * math.prod(layer.weight[1:]) ** -0.5
    return Operands(
        draw(batch, *layer.sample).contiguous(memory_format=layout),
        weight.contiguous(memory_format=layout),
        pack_weight(weight, layer.groups) if layer.operator == "conv2d" else weight,
        0.5 * draw(layer.weight[0]),
        draw(batch, *layer.out_sample).contiguous(memory_format=layout) if layer.residual else None,
        pack_bound(0.5 + draw(*layer.out_sample).abs()) if layer.bounded else None,
    )


def library(layer: Layer, given: Operands) -> Tensor:
    """The library's part of the layer, with the bias that it takes along."""
    if layer.operator == "linear":
        return F.linear(given.x, given.weight, given.bias)
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.conv2d(given.x, given.weight, given.bias, *geometry)


def eager(layer: Layer, given: Operands) -> Tensor:
    """The layer as the sanitised graph runs it, operator by operator."""
    y = library(layer, given)
    if given.residual is not None:
        y = y + given.residual
    y = activate_ref(y, layer.act)
    return y if given.bound is None else torch.ops.unit_fast.clamp_bound.default(y, given.bound)


class _Module(nn.Module):
    """The layer without its bound, as a network has it."""

    def __init__(self, layer: Layer, given: Operands) -> None:
        super().__init__()
        self.layer = layer
        self.weight, self.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (given.weight, given.bias))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return eager(self.layer, Operands(x, self.weight, self.weight, self.bias, residual, None))


def compiled(layer: Layer, given: Operands) -> Callable[[Operands], Tensor]:
    """The layer by torch.compile's compiler, its weights and bound frozen; takes inputs laid out as the given ones.

    The captured graph goes straight to the compiler, as ``unit_fast.runtime.compiled`` does it: Dynamo's guards would
    take longer than many a layer. Its one or two kernels are called from Python, with the bound and without. Call it
    without gradients.
    """

    def inputs(operands: Operands) -> list[Tensor]:
        return [tensor for tensor in (operands.x, operands.residual) if tensor is not None]

    graph = capture(_Module(layer, given).eval(), tuple(inputs(given)))
    if given.bound is not None:
        (site,) = find_sites(graph)
        graph = insert_bounds(graph, {site.name: given.bound})
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes: list[Any] = [mode.from_tensor(tensor, static_shapes=True) for tensor in inputs(given)]
    with torch.inference_mode(False), torch.no_grad():
        run: Any = torch._inductor.compile(FlatGraph(graph).module, fakes, {"freezing": True})
    return lambda operands: run(*inputs(operands))[0]
