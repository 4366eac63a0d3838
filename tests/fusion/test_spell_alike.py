"""Aliases: renamed, with the same result; a model's fingerprint is that of its own spelling."""

import pytest
import torch
from torch import Tensor, nn

from unit_fast.capture import capture
from unit_fast.fusion.spell_alike import _ALIASES, spell_alike
from unit_fast.sites import find_sites

FUNCTIONS = {
    "multiply": lambda x: torch.multiply(x, torch.sigmoid(x)),
    "multiply, subtract by numbers": lambda x: x * x.multiply(2.0).subtract(1.0).sigmoid(),
    "divide": lambda x: torch.divide(x, 1 + torch.exp(-x)),
    "divide, rounded": lambda x: torch.divide(x, 2.0, rounding_mode="floor") + torch.relu(x),
    "subtract": lambda x: torch.subtract(x, x.clamp(max=0)),
    "subtract a share": lambda x: torch.subtract(x, x.clamp(max=0), alpha=0.5),
    "negative": lambda x: torch.negative(torch.minimum(torch.negative(x), torch.zeros_like(x))),
    "absolute": lambda x: (x + torch.absolute(x)) / 2,
    "greater": lambda x: x * torch.greater(x, 0),
    "greater_equal": lambda x: torch.where(torch.greater_equal(x, 0), x, 0.1 * x),
    "less": lambda x: torch.where(torch.less(x, 0), 0.1 * x, x),
    "less_equal": lambda x: x.masked_fill(torch.less_equal(x, 0.5), 0.0),
    "and": lambda x: torch.where((x > 0) & (x != -1), x, 0.0),
    "or": lambda x: torch.where((x < 0) | torch.not_equal(x, x), 0.0, x),
}


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operator_under_another_name_is_part_of_an_activation(name):
    model, x = Function(FUNCTIONS[name]), 3 * torch.randn(5, 4)
    graph = capture(model, torch.randn(2, 4))
    assert not any(node.target in _ALIASES for node in graph.graph.nodes)
    assert len(find_sites(graph)) == 1
    torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)


def test_a_graph_without_aliases_is_left_alone():
    graph = capture(Function(lambda x: torch.relu(x * 2)), torch.randn(2, 4))
    assert spell_alike(graph) == 0


def test_the_fingerprint_is_that_of_the_models_own_spelling():
    first, second = (
        capture(Function(function), torch.randn(2, 4)).meta["fingerprint"]
        for function in (lambda x: torch.relu(torch.multiply(x, 2.0)), lambda x: torch.relu(torch.mul(x, 2.0)))
    )
    assert first.graph != second.graph
