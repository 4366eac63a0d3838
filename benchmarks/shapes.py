"""The layers of the benchmarked networks, read from their captured graphs: what a kernel is asked for in earnest."""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx

from unit_fast.capture import capture
from unit_fast.fusion.fuse import fuse
from unit_fast.sites import find_sites, insert_bounds

Operator = Literal["conv2d", "linear"]
_OPERATORS: dict[object, Operator] = {
    torch.ops.aten.conv2d.default: "conv2d",  # with nothing to fuse
    torch.ops.aten.linear.default: "linear",
    torch.ops.unit_fast.conv2d.default: "conv2d",
    torch.ops.unit_fast.linear.default: "linear",
}
NETWORKS = ("resnet50", "mobilenet_v2", "vit_b16", "vgg16", "resnet18_32", "convnext_t")
"""Of ``benchmarks.models``, in the order of what they tell about the kernels."""
GPU_BATCHES = (1, 32, 256)
"""Samples a call, on a GPU."""


@dataclass(frozen=True)
class Layer:
    """A convolution or product with what follows it up to its site: residual, activation and bound.

    Attributes:
        operator: of ``torch.ops.unit_fast``.
        sample: shape of one input sample, (C, H, W) or (..., K).
        weight: (N, C / groups, R, S) or (N, K).
        out_sample: shape of one output sample.
        residual: whether another activation is added.
        act: the activation, by the kernels' name.
        bounded: whether a bound limits the output: where the network has a site.
        networks: those it was found in, each with how many of its layers are alike.
    """

    operator: Operator
    sample: tuple[int, ...]
    weight: tuple[int, ...]
    out_sample: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    residual: bool = False
    act: str = "identity"
    bounded: bool = False
    networks: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """One line, e.g. "conv2d 64x56x56 256x64x1x1 +residual relu bounded"."""
        geometry = "" if self.stride == (1, 1) else f" /{self.stride[0]}"
        geometry += "" if self.dilation == (1, 1) else f" dilated {self.dilation[0]}"
        groups = "" if self.groups == 1 else f" groups {self.groups}"
        tail = f"{' +residual' if self.residual else ''}{'' if self.act == 'identity' else ' ' + self.act}"
        return f"{self.operator} {_times(self.sample)} {_times(self.weight)}{geometry}{groups}{tail}"

    @property
    def options(self) -> tuple[Any, ...]:
        """What follows the tensors in the operator's schema."""
        geometry = (self.stride, self.padding, self.dilation, self.groups) if self.operator == "conv2d" else ()
        return (*geometry, self.act, ())


def _times(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def merged(found: Mapping[str, Iterable[Layer]]) -> list[Layer]:
    """The layers of several networks, by their names: each once, with where and how often it occurs."""
    networks: dict[Layer, Counter[str]] = defaultdict(Counter)
    for network, layers in found.items():
        for layer in layers:
            networks[layer][network] += 1
    return [replace(layer, networks=tuple(counts.items())) for layer, counts in networks.items()]


@functools.cache
def layers_of(network: str) -> tuple[Layer, ...]:
    """Every convolution and linear layer of a network of ``benchmarks.models``, in the order of its graph.

    Layers whose first dimension is not the batch (attention's projections, in torchvision) are left out.
    """
    from benchmarks.models import make  # torchvision takes seconds to import

    return tuple(layers_in(capture(*make(network))))


def layers_in(graph: fx.GraphModule) -> Iterator[Layer]:
    """The layers of a captured graph, with what is fused into them when every site has a bound per neuron."""
    bounds = {site.name: torch.ones(site.shape) for site in find_sites(graph)}
    for node in fuse(insert_bounds(graph, bounds)).graph.nodes:
        operator = _OPERATORS.get(node.target)
        if operator is None:
            continue
        sample, weight = (argument.meta["val"].shape for argument in node.args[:2])
        if not (isinstance(sample[0], torch.SymInt) and sample[0].node.expr.is_symbol):
            continue
        given = {argument.name: argument.default_value for argument in node.target._schema.arguments}
        given |= dict(zip(given, node.args, strict=False))
        pairs = ("stride", "padding", "dilation")
        geometry: dict[str, Any] = {name: _pair(given[name]) for name in pairs if name in given}
        yield Layer(
            operator,
            tuple(sample[1:]),
            tuple(weight),
            tuple(node.meta["val"].shape[1:]),
            **geometry,
            groups=given.get("groups", 1),
            residual=given.get("residual") is not None,
            act=given.get("act", "identity"),
            bounded=given.get("bound") is not None,
        )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return first, second
