"""Conv2d (→ + residual) (→ activation) (→ clamp_bound) => unit_fast::conv2d, and what must be left alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fusion.fusing import fused_like, sanitised
from unit_fast.fusion.fuse import fuse
from unit_fast.kernels.reference import ACTIVATION_DEFAULTS

X = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(0))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


ACTIVATIONS = {
    "relu": (nn.ReLU(), "relu", []),
    "relu6": (nn.ReLU6(), "hardtanh", [0.0, 6.0]),
    "hardtanh": (nn.Hardtanh(-0.3, 0.4), "hardtanh", [-0.3, 0.4]),
    "leaky_relu": (nn.LeakyReLU(0.2), "leaky_relu", [0.2]),
    "elu": (nn.ELU(1.3), "elu", [1.3]),
    "gelu": (nn.GELU(), "gelu", []),
    "gelu_tanh": (nn.GELU("tanh"), "gelu_tanh", []),
    "silu": (nn.SiLU(), "silu", []),
    "silu written out": (Swish(), "silu", []),
    "hardswish": (nn.Hardswish(), "hardswish", []),
    "rrelu": (nn.RReLU(), "leaky_relu", [(1 / 8 + 1 / 3) / 2]),
    "threshold at 0": (nn.Threshold(0.0, 0.0), "relu", []),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_convolution_takes_its_activation_and_clamp(activation):
    layer, act, act_args = ACTIVATIONS[activation]
    module = sanitised(nn.Sequential(nn.Conv2d(4, 6, 3), layer).eval(), X)
    assert fused_like(module, X) == {"unit_fast.conv2d": 1}
    (node,) = (node for node in fuse(module).graph.nodes if node.op == "call_function")
    assert node.args[-2] == act
    assert node.args[-1] == pytest.approx(act_args)


def test_no_activation_of_the_operators_is_missing_above():
    assert {act for _, act, _ in ACTIVATIONS.values()} | {"identity", "relu6"} == set(ACTIVATION_DEFAULTS)


GEOMETRIES = {
    "1x1": nn.Conv2d(4, 6, 1),
    "stride and padding": nn.Conv2d(4, 6, 3, 2, 1, bias=False),
    "uneven": nn.Conv2d(4, 6, (3, 1), (1, 2), (0, 1)),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, groups=4),
    "same": nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)),
    "valid": nn.Conv2d(4, 6, 3, padding="valid"),
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_geometry(geometry):
    module = sanitised(nn.Sequential(GEOMETRIES[geometry], nn.ReLU()), X)
    assert fused_like(module, X) == {"unit_fast.conv2d": 1}


class Block(nn.Module):
    """Two convolutions, an addition of ``skip`` before or behind it, relu."""

    def __init__(self, skip: nn.Module, swapped: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.skip, self.swapped = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 1), skip, swapped

    def forward(self, x: Tensor) -> Tensor:
        y, skip = self.b(F.relu(self.a(x))), self.skip(x)
        return F.relu(skip + y if self.swapped else y + skip)


@pytest.mark.parametrize("swapped", [False, True], ids=["skip last", "skip first"])
def test_a_residual_goes_into_the_convolution_before_it(swapped):
    assert fused_like(sanitised(Block(nn.Identity(), swapped), X), X) == {"unit_fast.conv2d": 2}


def test_of_two_convolutions_that_are_added_the_first_takes_the_sum():
    operators = fused_like(sanitised(Block(nn.Conv2d(4, 4, 1)), X), X)
    assert operators == {"unit_fast.conv2d": 3}


def test_without_an_activation_the_sum_still_goes_in():
    class LinearBottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(F.relu6(self.a(x)))

    assert fused_like(sanitised(LinearBottleneck(), X), X) == {"unit_fast.conv2d": 2}


def test_the_new_node_tells_what_is_in_it():
    nodes = [node for node in fuse(sanitised(Block(nn.Identity()), X)).graph.nodes if "fused" in node.meta]
    assert [node.meta["fused"] for node in nodes] == [("conv2d", "relu", "clamp"), ("conv2d", "add", "relu", "clamp")]
    assert [node.meta["site"] for node in nodes] == ["relu", "relu_1"]


class ReadTwice(nn.Module):
    """The convolution's own output is read beside its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([F.relu(y), y], 1)


class UnclampedReadTwice(nn.Module):
    """The unclamped activation is read by the graph's output as well, through a mean that has no site."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return F.relu(y) + 1, y.mean((2, 3))


class BroadcastSum(nn.Module):
    """What is added is one value a channel, so it is no residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x.mean((2, 3), keepdim=True))


class BatchBroadcastSum(nn.Module):
    """What is added is one learned sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.offset = nn.Conv2d(4, 4, 1), nn.Parameter(torch.randn(1, 4, 7, 7))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + self.offset)


class ScaledSum(nn.Module):
    """The addition has a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.add(self.conv(x), x, alpha=2))


class WithItself(nn.Module):
    """Both summands are the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(y + y)


class ComputedWeights(nn.Module):
    """The weights are an output of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.weight * 2))


LEFT_ALONE = {
    "output read twice": (ReadTwice(), {"unit_fast.conv2d": 1, "unit_fast.epilogue": 1, "aten.cat": 1}),
    "residual of one value a channel": (
        BroadcastSum(),
        {"unit_fast.conv2d": 1, "aten.mean": 1, "aten.add": 1, "unit_fast.epilogue": 1},
    ),
    "residual of one sample": (BatchBroadcastSum(), {"unit_fast.conv2d": 1, "aten.add": 1, "unit_fast.epilogue": 1}),
    "addition with a factor": (ScaledSum(), {"unit_fast.conv2d": 1, "aten.add": 1, "unit_fast.epilogue": 1}),
    "added to itself": (WithItself(), {"unit_fast.conv2d": 1, "unit_fast.epilogue": 1}),
    "computed weights": (ComputedWeights(), {"aten.mul": 1, "aten.conv2d": 1, "unit_fast.epilogue": 1}),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.ReLU()),
        {"aten.conv_transpose2d": 1, "unit_fast.epilogue": 1},
    ),
    "unsymmetric same": (
        nn.Sequential(nn.Conv2d(4, 4, 2, padding="same"), nn.ReLU()),
        {"aten.conv2d": 1, "unit_fast.epilogue": 1},
    ),
    "activation of another kind": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.Mish()),
        {"unit_fast.conv2d": 1, "aten.mish": 1, "unit_fast.epilogue": 1},
    ),
    "selu": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.SELU()),
        {"unit_fast.conv2d": 1, "aten.selu": 1, "unit_fast.epilogue": 1},
    ),
    "nothing behind it": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.ReLU()),
        {"unit_fast.conv2d": 1, "aten.max_pool2d": 1, "unit_fast.epilogue": 1},
    ),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_what_is_not_provably_the_same_is_left_alone(case):
    network, left = LEFT_ALONE[case]
    assert fused_like(sanitised(network, X), X) == left


@pytest.mark.parametrize(
    ("layer", "x"),
    [(nn.Conv1d(4, 4, 3), torch.randn(2, 4, 9)), (nn.Conv3d(4, 4, 2), torch.randn(2, 4, 3, 3, 3))],
    ids=["one-dimensional", "three-dimensional"],
)
def test_other_dimensions_are_left_alone(layer, x):
    operators = fused_like(sanitised(nn.Sequential(layer, nn.ReLU()), x), x)
    assert operators["unit_fast.conv2d"] == 0
    assert operators["unit_fast.epilogue"] == 1


def test_an_output_that_is_returned_too_is_kept():
    model = UnclampedReadTwice()
    module = sanitised(model, X)
    y, mean = fuse(module)(X)
    expected, expected_mean = module(X)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(mean, expected_mean)
