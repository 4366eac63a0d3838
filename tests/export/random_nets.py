"""Drawn networks and drawn bounds: every kind of layer, join and activation that an export meets."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.export.models import binding_bound
from unit_fast.bounds import Bounds, Granularity
from unit_fast.capture import capture
from unit_fast.export.flat import FlatGraph, flatten_graph
from unit_fast.sites import expose_sites, find_sites, insert_bounds

ACTIVATIONS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "clamp": lambda: nn.Hardtanh(0.0, 1.5), "leaky": nn.LeakyReLU, "elu": nn.ELU,
    "gelu": nn.GELU, "silu": nn.SiLU, "hardtanh": nn.Hardtanh, "prelu": nn.PReLU, "mish": nn.Mish,
    "hardswish": nn.Hardswish, "softplus": nn.Softplus,
}  # fmt: skip
# Half of the draws are the activations that fold.
_DRAWN_ACTIVATIONS = ["relu"] * 8 + ["relu6", "clamp"] * 2 + sorted(ACTIVATIONS)
CONVOLUTIONS = ["plain", "depthwise", "grouped", "transposed", "shared", "norm_first", "no_bias"]
JOINS = [
    "chain", "identity", "conv_skip", "twice", "concat", "max_pool", "avg_pool", "upsample", "pad", "shuffle", "split",
    "gate", "pool_first", "token_norm",
]  # fmt: skip
HEADS = ["mean", "adaptive", "flatten", "norm", "feature"]
EDGES = [0.0, -0.0, 1e-40, 1e-31, 1e-25, 0.3, 2.0, 1e30, 1e35, float("inf"), -0.2]


@dataclass(frozen=True)
class DrawnNet:
    """What a network is made of: (convolution, activation, join) for every block, and its end."""

    blocks: tuple[tuple[str, str, str], ...]
    head: str


# With every kind of join that scales have to cross.
JOINED = DrawnNet(
    (
        ("plain", "relu", "concat"),
        ("grouped", "relu6", "conv_skip"),
        ("shared", "relu", "split"),
        ("shared", "relu", "pad"),
    ),
    "flatten",
)
# A residual block, and behind the last activation a difference from what came in, or an upsampling.
RESIDUAL, UPSAMPLED = (
    DrawnNet((("plain", "relu", "chain"), ("depthwise", "relu", "identity"), ("transposed", "relu", join)), "norm")
    for join in ("twice", "upsample")
)
CURVED = DrawnNet((("no_bias", "elu", "max_pool"), ("plain", "leaky", "avg_pool")), "mean")


@dataclass(frozen=True)
class DrawnBounds:
    """Bounds that half bind, but for every second value of some sites, which is at an edge."""

    granularity: Granularity
    edges: tuple[float | None, ...]


def drawn_nets() -> st.SearchStrategy[DrawnNet]:
    """Networks of one to four blocks."""
    block = st.tuples(st.sampled_from(CONVOLUTIONS), st.sampled_from(_DRAWN_ACTIVATIONS), st.sampled_from(JOINS))
    return st.builds(DrawnNet, st.lists(block, min_size=1, max_size=4).map(tuple), st.sampled_from(HEADS))


def drawn_bounds() -> st.SearchStrategy[DrawnBounds]:
    """Bounds of every granularity, mostly by channel."""
    return st.builds(
        DrawnBounds,
        st.sampled_from(["tensor", "channel", "channel", "channel", "neuron"]),
        st.lists(st.none() | st.sampled_from(EDGES), min_size=4, max_size=4).map(tuple),
    )


class RandomNet(nn.Module):
    """A chain of four-channel convolutions whose activations, skips and joins are drawn."""

    def __init__(self, blocks: tuple[tuple[str, str, str], ...], head: str) -> None:
        super().__init__()
        self.blocks, self.head = blocks, head
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.convs, self.acts, self.skips = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for conv, act, _ in blocks:
            self.convs.append(self._convolution(conv))
            self.acts.append(ACTIVATIONS[act]())
            self.skips.append(nn.Conv2d(4, 4, 1))
        self.squeeze = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in blocks)
        self.fc = nn.Linear(4 * 36 if head == "flatten" else 4, 6)
        self.hidden = nn.ReLU()
        self.out = nn.Linear(6, 3)
        self.norm = nn.LayerNorm(6)

    def _convolution(self, kind: str) -> nn.Module:
        made: dict[str, Any] = {
            "plain": lambda: [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)],
            "depthwise": lambda: [nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)],
            "grouped": lambda: [nn.Conv2d(4, 4, 1, groups=2), nn.BatchNorm2d(4)],
            "transposed": lambda: [nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2)],
            "shared": lambda: [self.shared],
            "norm_first": lambda: [nn.BatchNorm2d(4)],
            "no_bias": lambda: [nn.Conv2d(4, 4, 3, padding="same", bias=False)],
        }
        return nn.Sequential(*made[kind]())

    def forward(self, x: Tensor) -> Tensor:  # (N, 4, 6, 6) -> (N, 3)
        for index, (_, _, join) in enumerate(self.blocks):
            x = self._block(index, join, x)
        x = nn.functional.interpolate(x, size=(6, 6)) if x.shape[-1] != 6 else x
        if self.head == "feature":
            return x
        if self.head == "flatten":
            x = x.flatten(1)
        elif self.head == "adaptive":
            x = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        else:
            x = x.mean((2, 3))
        x = self.hidden(self.fc(x))
        return self.norm(x) if self.head == "norm" else self.out(x)

    def _block(self, index: int, join: str, x: Tensor) -> Tensor:
        act = self.acts[index]
        y = self.convs[index](x)
        if join == "identity":
            return act(y + x)
        if join == "conv_skip":
            return act(y + self.skips[index](x))
        if join == "pool_first":
            return act(nn.functional.max_pool2d(y, 3, 1, 1))
        y = act(y)
        if join == "twice":
            return y * 2 - x
        if join == "concat":
            return self.squeeze[index](torch.cat([x, y], 1))
        if join == "max_pool":
            return nn.functional.max_pool2d(y, 3, 1, 1)
        if join == "avg_pool":
            return nn.functional.avg_pool2d(y, 3, 1, 1)
        if join == "upsample":
            return nn.functional.avg_pool2d(nn.functional.interpolate(y, scale_factor=2, mode="bilinear"), 2)
        if join == "pad":
            return self.skips[index](nn.functional.pad(y, (1, 0, 0, 1)))[:, :, :-1, 1:]
        if join == "shuffle":
            return y.reshape(y.shape[0], 2, 2, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
        if join == "split":
            first, second = y.chunk(2, 1)
            return torch.cat([second, self.skips[index](y)[:, :2] + first], 1)
        if join == "gate":
            return y * torch.sigmoid(self.skips[index](y.mean((2, 3), keepdim=True)))
        if join == "token_norm":
            tokens = y.flatten(2).transpose(1, 2)
            return nn.functional.layer_norm(tokens, (4,)).transpose(1, 2).reshape(y.shape)
        return y


class RandomCase:
    """A drawn network, captured once, with eight samples."""

    def __init__(self, draw: DrawnNet, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.model = RandomNet(draw.blocks, draw.head).to(dtype)
        self.images = torch.randn(8, 4, 6, 6, dtype=dtype)
        self.model.train()
        with torch.no_grad():
            self.model(self.images * 2 + 0.3)
        self.model.eval()
        self.captured = capture(self.model, self.images)
        self.sites = find_sites(self.captured)
        with torch.no_grad():
            self.activations: dict[str, Tensor] = expose_sites(self.captured, self.sites)(self.images)[1]

    def bounds(self, draw: DrawnBounds) -> Bounds:
        """Bounds as drawn."""
        tensors = {}
        for index, site in enumerate(self.sites):
            bound = binding_bound(self.activations[site.name], site, draw.granularity, 0.7)
            edge = draw.edges[index % len(draw.edges)]
            if edge is not None:
                bound.view(-1)[::2] = edge
            tensors[site.name] = bound
        return Bounds(tensors, self.sites, draw.granularity, self.captured.meta["fingerprint"])

    def flat(self, bounds: Bounds) -> FlatGraph:
        """The sanitised graph."""
        return flatten_graph(insert_bounds(self.captured, dict(bounds.items())), self.images)
