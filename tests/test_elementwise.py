"""Responses: which nodes are functions of one other, and what they come to at the probes."""

import pytest
import torch
from torch import Tensor, nn

from unit_fast.capture import capture
from unit_fast.elementwise import Responses


class Computed(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("many", torch.linspace(-1, 1, 3 * 80 * 80).view(3, 80, 80))
        self.register_buffer("rows", torch.linspace(-1, 1, 3).view(1, 1, 3, 1, 1))
        self.register_buffer("first", torch.tensor([0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def result_of(function) -> tuple[Responses, torch.fx.Node]:
    """The responses of a graph, and the node that it returns."""
    graph = capture(Computed(function), torch.randn(2, 3, 80, 80))
    responses = Responses(graph)
    for node in graph.graph.nodes:
        responses.visit(node)
    output = next(node for node in graph.graph.nodes if node.op == "output")
    return responses, output.all_input_nodes[0]


def emptied(module: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, module.first] = 0.0
    return x


@pytest.mark.parametrize(
    ("function", "tried"),
    [
        (lambda _, x: torch.erf(2 * x + 1).half(), True),
        (lambda m, x: x * m.rows[0].sigmoid(), True),
        (lambda _, x: x / x.mean((2, 3), keepdim=True), False),
        (lambda _, x: x.flip(1), False),
        (lambda m, x: x + m.many, False),
        (lambda m, x: x[:, None] * m.rows, True),
        (lambda m, x: x * m.rows, False),
        (lambda m, x: x * m.rows[0].expand_as(x).neg(), True),
        (lambda m, x: x * m.rows[0].repeat(x.shape[0], 1, 80, 80), True),
        (lambda m, x: x * m.rows[0].repeat(x.shape[0], 1, 1, 1).flip(1), False),
        (lambda m, x: x * m.many[:, :40].repeat(x.shape[0], 1, 2, 1), False),
        (lambda m, x: x * (x.new_zeros(x.shape) + m.many), False),
        (lambda _, x: x * x.mean((2, 3), keepdim=True).expand_as(x), False),
        (emptied, False),
    ],
    ids=[
        *("pointwise", "by constants", "of two", "moved", "by many constants", "by constants of its rank"),
        *("by constants of a higher rank", "by constants expanded", "by constants repeated", "by constants moved"),
        *("by constants tiled", "by many constants in a fill", "by another expanded", "a part put in"),
    ],
)
def test_functions_of_one_value_are_told(function, tried):
    responses, node = result_of(function)
    assert responses.tried(node) is tried


def test_a_bound_holds_what_comes_after_it():
    responses, node = result_of(lambda _, x: torch.where(x > 0, x, 0.0) * 2)
    assert responses.activation(node) == "relu"
    responses.hold(node.all_input_nodes[0])
    responses.visit(node)
    assert responses.activation(node) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: torch.round(x),
        lambda _, x: torch.floor(4 * x) / 4,
        lambda _, x: x.masked_fill(x == 0, -1e4),
        lambda _, x: x.bfloat16(),
        lambda _, x: torch.expm1(x.clamp(max=0)) - x,
    ],
    ids=["rounded", "in steps", "zeros masked", "in bfloat16", "part of xIELU"],
)
def test_what_is_straight_far_out_is_no_activation(function):
    responses, node = result_of(function)
    assert responses.tried(node)
    assert responses.activation(node) is None


def test_the_larger_of_a_value_and_a_constant_that_is_expanded_is_left_to_its_operator():
    responses, node = result_of(lambda m, x: torch.maximum(x, m.rows[0].expand_as(x)))
    assert not responses.tried(node)
