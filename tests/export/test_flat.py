"""Flat signatures: names, structures, and the inputs that verification runs on."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unit_fast.capture import capture
from unit_fast.errors import CaptureError
from unit_fast.export.flat import FlatGraph, evaluate_sites, flatten_graph
from unit_fast.sites import insert_bounds


class Nested(nn.Module):
    def forward(self, x: Tensor, table: Tensor) -> Any:  # (N, 3), (5, 3) -> nested
        y = torch.relu(x)
        return [y, {"logits": y @ table.t(), "x": (x, None)}]


class Single(nn.Module):
    def forward(self, output: Tensor) -> Tensor:  # (N, 3) -> (N, 3)
        return torch.relu(output)


X = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
TABLE = torch.ones(5, 3)


@pytest.fixture(scope="module")
def nested() -> FlatGraph:
    captured = capture(Nested().eval(), (X, TABLE))
    return flatten_graph(insert_bounds(captured, {"relu": torch.tensor(2.0)}), (X, TABLE))


def test_names_follow_the_signature(nested: FlatGraph) -> None:
    assert nested.input_names == ("x", "table")
    assert nested.output_names == ("output_0", "output_1_logits", "output_1_x_0")
    assert nested.structure == {
        "list": ["output_0", {"dict": {"logits": "output_1_logits", "x": {"tuple": ["output_1_x_0", None]}}}]
    }
    assert nested.dynamic == ((0,), ())


def test_an_output_is_never_called_like_an_input() -> None:
    captured = capture(Single().eval(), X)

    graph = flatten_graph(insert_bounds(captured, {"relu": torch.tensor(2.0)}), X)

    assert (graph.input_names, graph.output_names) == (("output",), ("output_",))


def test_the_reference_tells_activations_before_and_after(nested: FlatGraph) -> None:
    outputs, before, after = evaluate_sites(nested, (X, TABLE))

    assert torch.equal(before["relu"], torch.relu(X))
    assert torch.equal(after["relu"], torch.relu(X).clamp_max(2.0))
    assert torch.equal(outputs[0], after["relu"])
    assert torch.equal(outputs[1], after["relu"] @ TABLE.t())
    assert torch.equal(outputs[2], X)


def test_batches_repeat_the_example_and_leave_the_rest(nested: FlatGraph) -> None:
    x, table = nested.batch(5, 10.0)

    assert torch.equal(x, torch.cat([X, X, X[:1]]) * 10)
    assert torch.equal(table, TABLE)


def test_noise_takes_every_second_row_and_is_the_same_each_time(nested: FlatGraph) -> None:
    first, again = nested.batch(4, 10.0, noise=True)[0], nested.batch(4, 10.0, noise=True)[0]

    assert torch.equal(first, again)
    assert torch.equal(first[::2], X[[0, 0]] * 10)
    assert not torch.equal(first[1::2], X[[1, 1]] * 10)
    assert torch.equal(nested.inputs[0], X)


def test_an_example_of_another_structure_is_refused() -> None:
    captured = capture(Nested().eval(), (X, TABLE))

    with pytest.raises(CaptureError, match="structure the model was captured with"):
        flatten_graph(insert_bounds(captured, {"relu": torch.tensor(2.0)}), (X,))
