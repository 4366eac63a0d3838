"""Layers are read from captured graphs as they will be fused."""

import torch
from torch import Tensor, nn

from benchmarks.shapes import layers_in, layers_of, merged
from unit_fast.capture import capture


class Block(nn.Module):
    """A residual block whose shortcut is a convolution, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.shortcut = nn.Conv2d(3, 8, 1, stride=2)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.nn.functional.relu6(self.norm(self.main(x))))
        y = torch.relu(self.shortcut(x) + y)
        return self.head(y.flatten(1)).softmax(1)


def _layers():
    return list(layers_in(capture(Block().eval(), torch.randn(2, 3, 8, 8))))


def test_layers_have_their_geometry_and_what_follows_them():
    first, shortcut, second, head = _layers()  # where their results are: the second ends at the sum
    assert (first.sample, first.weight, first.out_sample) == ((3, 8, 8), (8, 3, 3, 3), (8, 4, 4))
    assert (first.stride, first.padding, first.act, first.bounded) == ((2, 2), (1, 1), "relu6", True)
    assert (second.groups, second.dilation) == (8, (2, 2))
    assert (second.residual, second.act, second.bounded) == (True, "relu", True)
    assert (shortcut.residual, shortcut.act, shortcut.bounded) == (False, "identity", False)
    assert (head.operator, head.sample, head.out_sample, head.bounded) == ("linear", (128,), (5,), False)


def test_equal_layers_are_merged_with_where_and_how_often_they_occur():
    first, *others = _layers()
    every = merged({"a": [first, *others, first], "b": [first]})
    assert len(every) == 4
    assert every[0].networks == (("a", 2), ("b", 1))
    assert every[1].networks == (("a", 1),)


def test_a_network_of_the_benchmarks():
    layers = layers_of("resnet20_32")
    assert len(layers) == 20  # 19 convolutions, one linear layer; its shortcuts have no weights
    assert sum(layer.bounded for layer in layers) == 19
    assert "conv2d 3x32x32 16x3x3x3 relu" in {layer.name for layer in layers}
