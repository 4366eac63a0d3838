"""Linear (→ + residual) (→ activation) (→ clamp_bound) => unit_fast::linear."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fusion.fusing import fused_like, sanitised

FEATURES = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("x", "granularity", "bias"),
    [
        pytest.param(FEATURES, "neuron", True, id="features"),
        pytest.param(TOKENS, "neuron", True, id="tokens, a bound a neuron"),
        pytest.param(TOKENS, "channel", False, id="tokens, a bound a channel, no bias"),
        pytest.param(TOKENS[:, None], "neuron", True, id="windows"),
        pytest.param(TOKENS, "tensor", True, id="tokens, one bound"),
    ],
)
def test_a_linear_layer_takes_its_activation_and_clamp(x, granularity, bias):
    module = sanitised(nn.Sequential(nn.Linear(6, 8, bias=bias), nn.GELU()), x, granularity)
    assert fused_like(module, x) == {"unit_fast.linear": 1}


class Mlp(nn.Module):
    """The half of a transformer block that has the site, with its residual."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


def test_the_residual_of_a_transformer_block_goes_in():
    assert fused_like(sanitised(Mlp(), TOKENS), TOKENS) == {"unit_fast.linear": 2}


class Positions(nn.Module):
    """What is added is one learned sample."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.positions = nn.Linear(6, 6), nn.Parameter(torch.randn(1, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x) + self.positions)


class Rearranged(nn.Module):
    """A view stands between the layer and its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x).flatten(1))


class ComputedWeights(nn.Module):
    """The weights are an output of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(x, self.weight.abs()))


LEFT_ALONE = {
    "residual of one sample": (Positions(), {"aten.linear": 1, "aten.add": 1, "unit_fast.epilogue": 1}),
    "a view in between": (Rearranged(), {"aten.linear": 1, "aten.reshape": 1, "unit_fast.epilogue": 1}),
    "computed weights": (ComputedWeights(), {"aten.abs": 1, "aten.linear": 1, "unit_fast.epilogue": 1}),
    "nothing behind it": (nn.Sequential(nn.ReLU(), nn.Linear(6, 2)), {"unit_fast.epilogue": 1, "aten.linear": 1}),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_what_is_not_provably_the_same_is_left_alone(case):
    network, left = LEFT_ALONE[case]
    operators = fused_like(sanitised(network, TOKENS), TOKENS)
    operators.pop("aten.sym_size", None)
    assert operators == left
