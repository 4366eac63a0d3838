"""Conv or Linear -> BatchNorm => Conv or Linear, against the module in float64."""

import pytest
import torch
from torch import Tensor, nn

from tests.networks import randomised
from unit_fast.capture import capture

aten = torch.ops.aten


def norms_and_scales(graph) -> tuple[int, int]:
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return sum("norm" in name for name in names), sum("mul" in name for name in names)


PRODUCERS = {
    "conv1d": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (4, 9, 9)),
    "conv2d same padding": (nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), (4, 9, 9)),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (4, 9, 9)),
    "conv2d depthwise": (nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), (4, 9, 9)),
    "conv3d": (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), (2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2), nn.BatchNorm2d(6), (4, 5, 5)),
    "transposed grouped": (nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6), (4, 5, 5)),
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (4,)),
    "affine off": (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, affine=False), (4, 3, 3)),
}


@pytest.mark.parametrize("producer", PRODUCERS)
def test_folds(producer):
    layer, norm, shape = PRODUCERS[producer]
    if norm.affine:
        randomised(norm)
    else:
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(1.7)
    model = nn.Sequential(layer, norm, nn.ReLU()).eval()
    captured = capture(model, torch.randn(2, *shape))
    x = torch.randn(5, *shape)
    expected = nn.Sequential(layer, norm, nn.ReLU()).eval().double()(x.double()).float()
    model.float()
    torch.testing.assert_close(captured(x), expected, rtol=1e-5, atol=1e-5)
    assert norms_and_scales(captured) == (0, 0)


def test_a_batch_norm_with_nothing_to_fold_into_becomes_scale_and_shift():
    model = randomised(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)))
    captured = capture(model, torch.randn(2, 3, 4, 4))
    x = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(captured(x), model(x), rtol=1e-5, atol=1e-5)
    assert norms_and_scales(captured) == (0, 1)


class Branching(nn.Module):
    """The convolution's own output is read beside its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.relu(self.norm(y)) + y


class SharedWeights(nn.Module):
    """One convolution, two BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(self.conv(x))) + self.second(self.conv(x))


class TokensLinear(nn.Module):
    """A linear layer over the last axis, a BatchNorm over the middle one: nothing to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.linear(x)))


@pytest.mark.parametrize(
    ("network", "shape"),
    [(Branching, (3, 4, 4)), (SharedWeights, (3, 4, 4)), (TokensLinear, (4, 4))],
    ids=["producer read twice", "weights shared by two norms", "norm over another axis"],
)
def test_what_is_special_stays_right(network, shape):
    model = randomised(network(), seed=3)
    captured = capture(model, torch.randn(2, *shape))
    x = torch.randn(5, *shape)
    torch.testing.assert_close(captured(x), model(x), rtol=1e-5, atol=1e-5)
    assert norms_and_scales(captured)[0] == 0
