"""The bias of a convolution on a shortcut goes into that of the convolution it is added to."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fusion.fusing import fused_like, sanitised
from unit_fast.fusion.fuse import fuse

X = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(0))


class Shortcut(nn.Module):
    def __init__(self, own: bool = True, theirs: bool = True, between: nn.Module | None = None) -> None:
        super().__init__()
        self.main, self.shortcut = nn.Conv2d(4, 6, 3, 1, 1, bias=own), nn.Conv2d(4, 6, 1, bias=theirs)
        self.between = between or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.between(self.shortcut(x)))


class ReadTwice(Shortcut):
    def forward(self, x: Tensor) -> Tensor:
        y = self.shortcut(x)
        return F.relu(self.main(x) + y) * y.mean()


class OwnInput(Shortcut):
    """What is added is also what the convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(6, 6, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shortcut(x)
        return F.relu(self.main(y) + y)


def biases(module):
    """Whether the convolutions have one, in the order in which they run."""
    graph = fuse(module).graph
    return [node.args[2] is not None for node in graph.nodes if node.target is torch.ops.unit_fast.conv2d.default]


@pytest.mark.parametrize("own", [True, False], ids=["own", "none of its own"])
def test_the_sum_takes_both(own):
    module = sanitised(Shortcut(own), X)
    assert fused_like(module, X)["unit_fast.conv2d"] == 2
    assert fuse(module).meta["fusions"]["hand_over_biases"] == 1
    assert biases(module) == [False, True]


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(Shortcut(theirs=False), id="no bias"),
        pytest.param(Shortcut(between=nn.ReLU()), id="an activation between"),
        pytest.param(Shortcut(between=nn.AvgPool2d(3, 1, 1)), id="a pooling between"),
        pytest.param(ReadTwice(), id="read twice"),
        pytest.param(OwnInput(), id="read by the sum's own convolution"),
    ],
)
def test_otherwise_it_stays(network):
    module = sanitised(network, X)
    fused_like(module, X)
    assert fuse(module).meta["fusions"]["hand_over_biases"] == 0


def test_the_model_s_own_biases_stay_as_they_are():
    module = sanitised(Shortcut(), X)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fuse(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
