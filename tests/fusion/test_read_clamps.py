"""Graphs that also return what their clamps took away: the output stays, the readings are those of plain tensors."""

import pytest
import torch
from torch import nn

from tests.runtime.networks import Nested, bounds_of
from unit_fast.capture import capture
from unit_fast.fusion.read_clamps import clamp_nodes, count_saturated, measure_excess
from unit_fast.sites import insert_bounds

BOUND = torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture(scope="module")
def sanitised():
    captured = capture(nn.Sequential(nn.ReLU()), torch.randn(2, 3))
    return insert_bounds(captured, {"0": BOUND})


def test_ties_are_not_above_and_nan_is_not_counted(sanitised):
    x = torch.tensor([[1.0, 2.0, 3.0], [1.5, 9.0, -9.0], [torch.nan, 0.0, 4.0], [torch.inf, 0.0, 0.0]])
    output, counts, excess = measure_excess(sanitised)(x)
    assert torch.equal(output.nan_to_num(), sanitised(x).nan_to_num())
    assert counts.tolist() == [[0], [2], [1], [1]]
    assert excess[[0, 1, 3]].tolist() == [[0.0], [7.0], [torch.inf]]
    assert excess[2].isnan().all()
    assert torch.equal(count_saturated(sanitised)(x)[1], counts)


def test_infinite_bounds_are_never_exceeded():
    open_ = insert_bounds(capture(nn.Sequential(nn.ReLU()), torch.randn(2, 3)), {"0": torch.tensor(torch.inf)})
    _, counts, excess = measure_excess(open_)(1e30 * torch.ones(2, 3))
    assert counts.sum() == 0
    assert excess.sum() == 0


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_nested_outputs_stay_as_they_are(batch):
    model = Nested().eval()
    pair = (torch.randn(3, 4), torch.randn(3, 4))
    sanitised = insert_bounds(capture(model, (pair,)), dict(bounds_of(model, (pair,)).items()))
    pair = (torch.randn(batch, 4), torch.randn(batch, 4))
    expected = sanitised(pair)
    output, counts = count_saturated(sanitised)(pair)
    assert torch.equal(output["sum"], expected["sum"])
    assert output["parts"][1][1] is None
    assert counts.shape == (batch, len(clamp_nodes(sanitised))) == (batch, 2)


def test_the_graph_is_left_alone(sanitised):
    code, names = sanitised.code, [node.name for node in sanitised.graph.nodes]
    measure_excess(sanitised)
    assert sanitised.code == code
    assert [node.name for node in sanitised.graph.nodes] == names
