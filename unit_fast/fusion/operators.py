"""Families of ATen operators that several passes treat alike."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import get_decompositions

_aten = torch.ops.aten

CONVOLUTIONS = frozenset(
    {
        _aten.conv1d.default,
        _aten.conv1d.padding,
        _aten.conv2d.default,
        _aten.conv2d.padding,
        _aten.conv3d.default,
        _aten.conv3d.padding,
    }
)
TRANSPOSED_CONVOLUTIONS = frozenset(
    {_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input}
)


def _rnn_relu_cell(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    state_weight: Tensor,
    bias: Tensor | None = None,
    state_bias: Tensor | None = None,
) -> Tensor:
    return F.relu(F.linear(state, state_weight, state_bias) + F.linear(x, weight, bias))


# With what they are taken apart by, so that the activation inside can be bounded.
ACTIVATIONS_INSIDE: Mapping[Any, Callable[..., Any]] = {
    **get_decompositions([_aten.rnn_relu.input, _aten._addmm_activation.default]),
    _aten.rnn_relu_cell.default: _rnn_relu_cell,
}
