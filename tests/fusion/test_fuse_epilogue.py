"""(a + b →) (activation →) clamp_bound, and a + b → activation => unit_fast::epilogue."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fusion.fusing import fused_like, sanitised
from unit_fast.capture import capture

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(F.max_pool2d(x, 3, 1, 1) + F.avg_pool2d(x, 3, 1, 1))


class Alone(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(F.max_pool2d(x, 2))


class Other(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(F.max_pool2d(x, 2))


@pytest.mark.parametrize("granularity", ["neuron", "channel", "tensor"])
@pytest.mark.parametrize(
    ("network", "left"),
    [
        (Sum(), {"aten.max_pool2d": 1, "aten.avg_pool2d": 1, "unit_fast.epilogue": 1}),
        (Alone(), {"aten.max_pool2d": 1, "unit_fast.epilogue": 1}),
        (Other(), {"aten.max_pool2d": 1, "aten.softplus": 1, "unit_fast.epilogue": 1}),
    ],
    ids=["sum, activation and clamp", "activation and clamp", "clamp alone"],
)
def test_what_is_left_becomes_one_pass(network, left, granularity):
    assert fused_like(sanitised(network, X, granularity), X) == left


def test_without_a_clamp_a_sum_takes_its_activation():
    assert fused_like(capture(Sum(), X), X)["unit_fast.epilogue"] == 1


def test_without_a_clamp_an_activation_alone_stays():
    assert fused_like(capture(Alone(), X), X) == {"aten.max_pool2d": 1, "aten.hardswish": 1}


class ReadBetween(nn.Module):
    """The sum is read beside its activation."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(x, 3, 1, 1) + x
        return torch.cat([F.relu(y), y], 1)


def test_a_sum_that_is_read_elsewhere_stays():
    left = {"aten.max_pool2d": 1, "aten.add": 1, "unit_fast.epilogue": 1, "aten.cat": 1}
    assert fused_like(sanitised(ReadBetween(), X), X) == left
