"""x · scale (+ shift) (→ + residual) (→ activation) (→ clamp_bound) => unit_fast::epilogue."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fusion.fusing import fused_like, sanitised
from tests.networks import randomised

MAP = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
FEATURES = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("norm", "x"),
    [(nn.BatchNorm2d(4), MAP), (nn.BatchNorm1d(6), FEATURES), (nn.BatchNorm1d(4), MAP.flatten(2))],
    ids=["map", "features", "sequence"],
)
def test_a_norm_takes_its_activation_and_clamp(norm, x):
    assert fused_like(sanitised(randomised(nn.Sequential(norm, nn.ReLU())), x), x) == {"unit_fast.epilogue": 1}


class PreActivation(nn.Module):
    """Norm, relu, convolution, and the sum read by the next norm and the next sum alike."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.convs = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(F.relu(norm(x)))
        return x


def test_pre_activation_blocks():
    operators = fused_like(sanitised(randomised(PreActivation()), MAP), MAP)
    assert operators == {"unit_fast.epilogue": 2, "unit_fast.conv2d": 2}


class LayerScale(nn.Module):
    """A learned factor a channel before the residual; its constant has a batch dimension of one."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gamma * F.max_pool2d(x, 3, 1, 1) + x)


def test_a_layers_scale_goes_with_its_residual():
    assert fused_like(sanitised(LayerScale(), MAP), MAP) == {"aten.max_pool2d": 1, "unit_fast.epilogue": 1}


class Outer(nn.Module):
    """The constant has more dimensions than a sample: it would enlarge the result."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu((x * self.scale).sum(0))


class Gate(nn.Module):
    """Both factors depend on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x * x.mean((2, 3), keepdim=True))


class ScaleAlone(nn.Module):
    """Nothing follows that could be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x.relu() * self.scale, 2)


@pytest.mark.parametrize(
    ("network", "x", "left"),
    [
        (Outer(), FEATURES, {"aten.mul": 1, "aten.sum": 1, "unit_fast.epilogue": 1}),
        (Gate(), MAP, {"aten.mean": 1, "aten.mul": 1, "unit_fast.epilogue": 1}),
        (ScaleAlone(), MAP, {"unit_fast.epilogue": 1, "aten.mul": 1, "aten.max_pool2d": 1}),
    ],
    ids=["enlarging", "not constant", "nothing behind it"],
)
def test_what_is_not_provably_the_same_is_left_alone(network, x, left):
    assert fused_like(sanitised(network, x), x) == left
