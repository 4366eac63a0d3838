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


class MetaACON(nn.Module):
    """As YOLOv5's utils/activations.py has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
        self.p1, self.p2 = nn.Parameter(torch.rand(1, 6, 1, 1)), nn.Parameter(torch.zeros(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        beta = torch.sigmoid(self.fc2(self.fc1(x.mean(dim=2, keepdim=True).mean(dim=3, keepdim=True))))
        dpx = (self.p1 - self.p2) * x
        return dpx * torch.sigmoid(beta * dpx) + self.p2 * x


def test_a_swish_with_a_computed_slope_is_a_site():
    model, x = MetaACON(), torch.randn(5, 3, 4, 4)
    graph = capture(model, torch.randn(2, 3, 4, 4))
    (site,) = find_sites(graph)
    assert (site.name, site.shape, site.channel_axis) == ("silu", (6, 4, 4), 1)
    bounded = insert_bounds(graph, {"silu": torch.tensor(0.1)})
    torch.testing.assert_close(bounded(x), model(x).clamp(max=0.1))


class DynamicReLU(nn.Module):
    """As github.com/Islanna/DynamicReLU has it: for each channel two lines, computed from the means of all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lines = nn.Conv2d(3, 6, 1), nn.Linear(6, 6 * 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        lines = 2 * torch.sigmoid(self.lines(x.mean((2, 3)))).view(-1, 6, 4) - 1
        several = x.permute(2, 3, 0, 1).unsqueeze(-1) * lines[:, :, :2] + lines[:, :, 2:]
        return torch.max(several, dim=-1)[0].permute(2, 3, 0, 1)


MAXOUT = {
    "linear pieces": TwoLayers(linear, lambda x, *_: x.view(*x.shape[:-1], 3, 2).max(-1).values),
    "linear pieces, amax": TwoLayers(linear, lambda x, *_: x.unflatten(-1, (2, 3)).amax(-2)),
    "channels": TwoLayers(normalised, lambda x, *_: x.view(x.shape[0], 3, 2, x.shape[2]).max(2)[0]),
    "layers stacked": TwoLayers(linear, lambda first, second, _: torch.stack([first, second]).max(0)[0]),
    "layers stacked last": TwoLayers(linear, lambda first, second, _: torch.stack([first, second], -1).amax(-1)),
}


@pytest.mark.parametrize("name", MAXOUT)
def test_maxout_is_a_site(name):
    model, x = MAXOUT[name].eval(), torch.randn(5, 6, 6)
    graph = capture(model, torch.randn(2, 6, 6))
    (site,) = find_sites(graph)
    assert (site.name, site.shape) == ("maximum", tuple(model(x).shape[1:]))
    bounded = insert_bounds(graph, {"maximum": torch.tensor(0.1)})
    torch.testing.assert_close(bounded(x), model(x).clamp(max=0.1))


def test_dynamic_relu_is_a_site():
    model, x = DynamicReLU(), torch.randn(5, 3, 4, 4)
    graph = capture(model, torch.randn(2, 3, 4, 4))
    (site,) = find_sites(graph)
    assert (site.shape, site.batch_axis) == ((4, 4, 6), 2)
    bounded = insert_bounds(graph, {site.name: torch.tensor(0.1)})
    torch.testing.assert_close(bounded(x), model(x).clamp(max=0.1))


@pytest.mark.parametrize(
    "join",
    [
        lambda x, *_: x.amax(1),
        lambda x, *_: x.view(x.shape[0], 3, 2, 6).amax(2),
        lambda x, *_: x.view(x.shape[0], -1).max(1)[0],
        lambda x, *_: (y := x.view(*x.shape[:-1], 3, 2)) - y.amax(-1, keepdim=True),
        lambda x, *_: x.view(*x.shape[:-1], 3, 2).amax((-1, -2)),
        lambda x, *_: x.view(*x.shape[:-1], 3, 2).max(-1)[1],
        lambda first, second, _: torch.stack([first, second]).amax(2),
        lambda first, second, _: torch.stack([first, second.tanh()]).amax(0),
        lambda x, *_: (x.unsqueeze(-1) * x.unsqueeze(-2)).amax(1),
    ],
    ids=[
        *("over places", "over windows", "over all", "as a softmax has it", "over all channels", "where it is"),
        *("within a stack", "of another stack", "over another dimension"),
    ],
)
def test_the_largest_over_other_dimensions_is_no_site(join):
    with pytest.raises(uf.CaptureError, match="no site"):
        find_sites(capture(TwoLayers(linear, join), torch.randn(2, 6, 6)))
