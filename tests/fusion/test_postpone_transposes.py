"""Transpositions move behind linear layers, and nothing else changes."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from unit_fast.capture import capture
from unit_fast.fusion.postpone_transposes import postpone_transposes

_aten = torch.ops.aten


class Layer(nn.Module):
    """A linear layer behind transpositions."""

    def __init__(self, *orders: tuple[int, ...], bias: bool = True, read_twice: bool = False) -> None:
        super().__init__()
        self.orders, self.read_twice = orders, read_twice
        self.linear = nn.Linear(6, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (N, 5, 6) or (N, 3, 5, 6)
        for order in self.orders:
            x = x.transpose(*order) if len(order) == 2 else x.permute(order)
        y = self.linear(x)
        return y + x.sum() if self.read_twice else y


class _Shapes(fx.Interpreter):
    """Holds the shapes that nodes promise to what they give; None stands for the batch."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "get_attr":
            promised = [size if isinstance(size, int) else None for size in n.meta["val"].shape]
            found = [None if size is None else length for size, length in zip(promised, result.shape, strict=True)]
            assert found == promised
        return result


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Layer((0, 1)), (2, 5, 6)),
        (Layer((-3, -2), bias=False), (2, 5, 6)),
        (Layer((1, 2, 0, 3)), (2, 3, 5, 6)),
        (Layer((1, 0, 2, 3), (1, 2)), (2, 3, 5, 6)),
        (Layer((0, 1), read_twice=True), (2, 5, 6)),
    ],
    ids=["transpose", "counted from the end", "permute", "two of them", "read by others"],
)
def test_a_transpose_moves_behind_the_linear_layer(layer: Layer, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    module = capture(layer, x)
    expected = module(x)

    assert postpone_transposes(module) == 1
    module.recompile()

    (linear,) = [node for node in module.graph.nodes if node.target is _aten.linear.default]
    assert linear.args[0].op == "placeholder"
    torch.testing.assert_close(module(x), expected)
    _Shapes(module).run(x)


@pytest.mark.parametrize(
    "layer", [Layer((1, 2)), Layer(), Layer((0, 2, 1))], ids=["last axis moves", "none", "last axis of a permute"]
)
def test_what_changes_the_sum_stays(layer: Layer) -> None:
    module = capture(layer, torch.randn(2, 6, 6))
    before = str(module.graph)

    assert postpone_transposes(module) == 0
    assert str(module.graph) == before
