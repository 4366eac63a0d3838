"""(conv2d →) max_pool2d: which epilogues go into the pooling, and which must stay before it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fusion.fusing import operators, sanitised
from unit_fast.fusion.fuse import fuse
from unit_fast.fusion.fuse_max_pool2d import fuse_max_pool2d

X = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
CONV, POOL = torch.ops.unit_fast.conv2d.default, torch.ops.unit_fast.max_pool2d.default


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        return F.max_pool2d(y, 2) * y.mean()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.conv(x) + x), 2)


def stem(pool: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), pool)


def pooled(network: nn.Module, absorb: bool = True):
    """The graph with its poolings, checked to give the sanitised graph's values."""
    module = sanitised(network, X)
    fused = fuse(module)
    fuse_max_pool2d(fused, absorb)
    for batch in (X, torch.cat([X, 2 * X, -X])):
        torch.testing.assert_close(fused(batch), module(batch), rtol=1e-5, atol=1e-5)
    return fused


WINDOWS = {
    "2": nn.MaxPool2d(2),
    "3 by 2": nn.MaxPool2d(3, 2, 1),
    "uneven": nn.MaxPool2d((3, 2), (1, 2), (1, 0)),
    "dilated": nn.MaxPool2d(2, dilation=2),
    "rounded up": nn.MaxPool2d(2, 2, ceil_mode=True),
}


@pytest.mark.parametrize("window", WINDOWS)
def test_the_pooling_takes_the_epilogue_before_it(window):
    graph = pooled(stem(WINDOWS[window])).graph
    (conv,) = (node for node in graph.nodes if node.target is CONV)
    (pool,) = (node for node in graph.nodes if node.target is POOL)
    assert conv.args[2:5] == (None, None, None)
    assert conv.args[-2] == "identity"
    assert pool.args[-2] == "relu"
    assert pool.args[1] is not None
    assert pool.args[2] is not None
    assert pool.meta["site"] == "1"
    assert "site" not in conv.meta
    assert (conv.meta["fused"], pool.meta["fused"]) == (("conv2d",), ("relu", "clamp", "max_pool2d"))


@pytest.mark.parametrize(
    ("network", "absorb"),
    [
        pytest.param(stem(nn.MaxPool2d(2)), False, id="where saturation is counted"),
        pytest.param(ReadTwice(), True, id="read twice"),
        pytest.param(Residual(), True, id="a residual"),
        pytest.param(
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2)), True, id="between"
        ),
    ],
)
def test_otherwise_it_stays_with_the_convolution(network, absorb):
    graph = pooled(network, absorb).graph
    (conv,) = (node for node in graph.nodes if node.target is CONV)
    (pool,) = (node for node in graph.nodes if node.target is POOL)
    assert conv.args[-2] == "relu"
    assert "site" in conv.meta
    assert pool.args[1:3] == (None, None)


def test_one_image_without_a_batch_is_left_to_torch():
    fused = fuse(sanitised(nn.Sequential(nn.Flatten(2), nn.MaxPool2d((1, 2)), nn.ReLU()), X))
    assert fuse_max_pool2d(fused) == 0
    assert operators(fused)["aten.max_pool2d"] == 1
