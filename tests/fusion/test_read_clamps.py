"""Graphs that also return what their clamps took away: the output stays, the readings are those of plain tensors."""

import pytest
import torch
from torch import nn

from tests.runtime.networks import Nested, Windows, bounds_of, images
from unit_fast.capture import capture
from unit_fast.errors import CaptureError
from unit_fast.fusion.read_clamps import (
    clamp_nodes,
    count_saturated,
    measure_excess,
    neurons_per_sample,
    rows_per_sample,
)
from unit_fast.fusion.rows import Rows
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


def test_every_activation_of_a_large_sample_is_counted():
    many = 2**24 + 3  # float32 holds no odd number from there on
    above = insert_bounds(capture(nn.ReLU(), torch.zeros(2, many)), {"relu": torch.tensor(0.5)})
    _, counts = count_saturated(above)(torch.ones(1, many))
    assert counts.tolist() == [[many]]
    assert counts.dtype == torch.int64


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


def test_sites_with_several_rows_a_sample_are_read_by_sample():
    model, x = Windows().eval(), images(5)
    bounds = bounds_of(model, x)
    sanitised = insert_bounds(capture(model, x), dict(bounds.items()))
    assert rows_per_sample(sanitised) == [Rows(), Rows(1, 4), Rows()]
    assert neurons_per_sample(sanitised) == 4 * 64 + 4 * 16 * 6 + 7
    output, counts, excess = measure_excess(sanitised)(x)
    assert torch.equal(output, sanitised(x))
    first, second, third = bounds.values()
    for sample in range(5):
        maps = torch.relu(model.conv(x[sample : sample + 1]))[0]
        clamped = torch.minimum(maps, first)
        found = [(maps, first)]
        windows = [clamped[:, y : y + 4, x_ : x_ + 4].flatten(1).t() for y in (0, 4) for x_ in (0, 4)]
        inner = torch.relu(model.inner(torch.stack(windows)))
        found.append((inner, second))
        found.append((torch.relu(model.outer(torch.minimum(inner, second).mean(1).flatten())), third))
        assert counts[sample].tolist() == [int((y > bound).sum()) for y, bound in found]
        expected = torch.stack([(y - bound).max().clamp_min(0) for y, bound in found])
        torch.testing.assert_close(excess[sample], expected, rtol=1e-5, atol=1e-6)
    assert measure_excess(sanitised)(x[:0])[1].shape == (0, 3)


class Rearranged(nn.Module):
    """ReLU of (N, 4, 6) with its dimensions rearranged by ``by``."""

    def __init__(self, by) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.by(x))


@pytest.mark.parametrize(
    ("by", "rows"),
    [
        pytest.param(lambda x: x.reshape(-1, 3), Rows(1, 8), id="windows"),
        pytest.param(lambda x: x.transpose(0, 1).reshape(-1, 6), Rows(4, 1), id="steps"),
        pytest.param(lambda x: x.transpose(0, 1).reshape(-1, 3), Rows(4, 2), id="windows in steps"),
        pytest.param(lambda x: torch.cat([x, x.flip(1)]), Rows(2, 1), id="joined"),
        pytest.param(lambda x: torch.cat([x, x, x.flip(1)]).reshape(-1, 6), Rows(3, 4), id="windows in joined"),
        pytest.param(lambda x: torch.stack([x, x.flip(1)]).flatten(0, 1), Rows(2, 1), id="stacked"),
        pytest.param(lambda x: x.repeat(3, 1, 1), Rows(3, 1), id="repeated"),
        pytest.param(lambda x: x.repeat_interleave(3, 0), Rows(1, 3), id="each repeated"),
        pytest.param(lambda x: x.reshape(-1, 3) + torch.zeros_like(x).reshape(-1, 3), Rows(1, 8), id="sum"),
    ],
)
def test_rows_are_read_by_sample_however_they_lie(by, rows):
    model, x = Rearranged(by), torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    sanitised = insert_bounds(capture(model, x), {"relu": torch.tensor(0.5)})
    assert rows_per_sample(sanitised) == [rows]
    _, counts, excess = measure_excess(sanitised)(x)
    above, copies = x.flatten(1) - 0.5, by(x).numel() // x.numel()
    assert counts[:, 0].tolist() == [copies * int((sample > 0).sum()) for sample in above]
    torch.testing.assert_close(excess[:, 0], above.amax(1).clamp_min(0))


def test_rows_that_disagree_are_refused():
    model = Rearranged(lambda x: x.reshape(-1, 6) + x.transpose(0, 1).reshape(-1, 6))
    sanitised = insert_bounds(capture(model, torch.randn(2, 4, 6)), {"relu": torch.tensor(0.5)})
    with pytest.raises(CaptureError, match="which of them belong to which sample"):
        measure_excess(sanitised)


def test_a_program_without_a_batch_in_front_cannot_be_read_by_sample():
    program = torch.export.export(nn.ReLU(), (torch.randn(4, 5),), dynamic_shapes=({1: torch.export.Dim("batch")},))
    sanitised = insert_bounds(capture(program, torch.randn(4, 5)), {"relu": torch.tensor(0.5)})
    with pytest.raises(CaptureError, match=r"no input .* first dimension that is free"):
        count_saturated(sanitised)


class Pairs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Every sample with every other: (N, 3) to (N * N, 3)."""
        return torch.relu((x[:, None] - x[None]).reshape(-1, 3))


def test_rows_that_belong_to_no_one_sample_are_refused_by_name():
    sanitised = insert_bounds(capture(Pairs(), torch.randn(2, 3)), {"relu": BOUND})
    with pytest.raises(CaptureError, match=r"site relu has activations whose first dimension is .*exclude="):
        count_saturated(sanitised)
