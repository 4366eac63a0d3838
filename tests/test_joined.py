"""Activations of more than one number, in networks that have no other."""

import pytest
import torch
from torch import Tensor, nn

import unit_fast as uf
from unit_fast.capture import capture
from unit_fast.sites import find_sites, insert_bounds


class TwoLayers(nn.Module):
    def __init__(self, make, join) -> None:
        super().__init__()
        self.first, self.second, self.join = make(), make(), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.first(x), self.second(x), x)


def linear() -> nn.Module:
    return nn.Linear(6, 6)


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6))


def transposed() -> nn.Module:
    return nn.ConvTranspose1d(6, 6, 1)


def glu(value: Tensor, gate: Tensor, _: Tensor) -> Tensor:
    return value * torch.sigmoid(gate)


def glu_gate_first(value: Tensor, gate: Tensor, _: Tensor) -> Tensor:
    return torch.sigmoid(gate) * value


@pytest.mark.parametrize("join", [glu, glu_gate_first])
@pytest.mark.parametrize("make", [linear, normalised, transposed])
def test_glu_of_two_layers_is_a_site(make, join):
    model, x = TwoLayers(make, join).eval(), torch.randn(5, 6, 6)
    graph = capture(model, torch.randn(2, 6, 6))
    (site,) = find_sites(graph)
    assert (site.name, site.shape) == ("glu", (6, 6))
    bounded = insert_bounds(graph, {"glu": torch.tensor(0.1)})
    torch.testing.assert_close(bounded(x), model(x).clamp(max=0.1))


@pytest.mark.parametrize(
    "join",
    [
        lambda _, gate, x: x * torch.sigmoid(gate),
        lambda value, gate, _: value * torch.sigmoid(gate.mean(1, keepdim=True)),
        lambda value, gate, _: torch.tanh(value) * torch.sigmoid(gate),
    ],
    ids=["of its input", "by a mean", "of a bounded value"],
)
def test_values_beside_other_gates_are_no_sites(join):
    with pytest.raises(uf.CaptureError, match="no site"):
        find_sites(capture(TwoLayers(linear, join), torch.randn(2, 6, 6)))
