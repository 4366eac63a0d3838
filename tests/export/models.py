"""Small networks of the kinds the exporter must carry, and bounds that bind on them."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from unit_fast.bounds import Bounds, Granularity, bound_shape
from unit_fast.capture import Example, call_arguments, capture
from unit_fast.sites import Site, expose_sites, find_sites


class Vgg(nn.Module):
    """Conv, BatchNorm, ELU and ReLU, max pooling, a classifier with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ELU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 8, 8) -> (N, 5)
        return self.classifier(self.features(x))


class Block(nn.Module):
    """A residual block whose activation module is used twice."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.skip = nn.Conv2d(8, width, 1, stride) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.skip(x))


class ResNet(nn.Module):
    """Residual blocks and functional relu."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 1), Block(16, 2))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 8, 8) -> (N, 5)
        y = self.blocks(F.relu(self.bn(self.stem(x))))
        return self.fc(y.mean((2, 3)))


class MobileNet(nn.Module):
    """ReLU6 and depthwise convolutions, hardswish."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, 2, 1, groups=12), nn.BatchNorm2d(12), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(12, 8, 1), nn.Hardswish())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 8, 8) -> (N, 5)
        return self.fc(F.adaptive_avg_pool2d(self.project(self.depthwise(self.expand(x))), 1).flatten(1))


class ViT(nn.Module):
    """Patches, attention, LayerNorm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 8, 8) -> (N, 5)
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(self.norm1(tokens)).chunk(3, dim=-1))
        tokens = tokens + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return self.head(tokens.mean(1))


class Dense(nn.Module):
    """Concatenated features, leaky and plain relu."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(9, 6, 3, padding=1)
        self.c = nn.Conv2d(15, 8, 1)
        self.act = nn.LeakyReLU(0.1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 8, 8) -> (N, 5)
        y = torch.cat([x, F.relu(self.a(x))], 1)
        y = torch.cat([y, self.act(self.b(y))], 1)
        return self.fc(F.relu(self.c(y)).amax((2, 3)))


class Small(nn.Sequential):
    """The least that has two sites, for tests that export once more only to see it refused."""

    def __init__(self) -> None:
        convolutions = nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU()
        super().__init__(*convolutions, nn.Flatten(), nn.Linear(16, 5))


ARCHITECTURES: dict[str, type[nn.Module]] = {
    "vgg": Vgg,
    "resnet": ResNet,
    "mobilenet": MobileNet,
    "vit": ViT,
    "dense": Dense,
}


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A network of that architecture with BatchNorm statistics that are not the identity, and eight images."""
    torch.manual_seed(0)
    model = Small() if name == "small" else ARCHITECTURES[name]()
    images = torch.randn(8, 3, 8, 8)
    model.train()
    for _ in range(3):
        model(images * 2 + 0.3)
    return model.eval(), images


@cache
def made_bounds(name: str, granularity: Granularity, fraction: float = 0.7) -> Bounds:
    """Bounds for ``make(name)``."""
    return bounds_of(_captured(name), make(name)[1], granularity, fraction)


@cache
def _captured(name: str) -> fx.GraphModule:
    """``make(name)``, captured once for all tests: read it only."""
    return capture(*make(name))


def bounds_for(
    model: nn.Module | torch.export.ExportedProgram, example: Example, granularity: Granularity, fraction: float = 0.7
) -> Bounds:
    """Bounds at a fraction of the largest activation on the example, so that they bind."""
    return bounds_of(capture(model, example), example, granularity, fraction)


def bounds_of(captured: fx.GraphModule, example: Example, granularity: Granularity, fraction: float = 0.7) -> Bounds:
    """As :func:`bounds_for`, of a graph that is captured already."""
    sites = find_sites(captured)
    args, kwargs = call_arguments(example)
    with torch.no_grad():
        _, activations = expose_sites(captured, sites)(*args, **kwargs)
    tensors = {}
    for site in sites:
        tensors[site.name] = binding_bound(activations[site.name], site, granularity, fraction)
    return Bounds(tensors, sites, granularity, captured.meta["fingerprint"])


def binding_bound(activation: Tensor, site: Site, granularity: Granularity, fraction: float) -> Tensor:
    """A bound at a fraction of the largest of ``activation``, (N, *site.shape)."""
    largest = activation.amax(0)
    shape = bound_shape(site, granularity)
    axes = tuple(axis for axis in range(largest.ndim) if not shape or shape[axis] == 1)
    reduced = largest.amax(axes, keepdim=bool(shape)) if axes else largest
    return (reduced * fraction).clamp_min(0.0).reshape(shape).contiguous()
