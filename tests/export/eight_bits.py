"""What eight bits do to a sanitised graph: every tensor rounded to 256 steps of what it ranges over, in float64.

Nothing is folded, joined or chosen here, and no arithmetic is the export's: an int8 file has to be about as good.
"""

from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.sites import clamp_bound

_aten = torch.ops.aten
_LAYERS = {_aten.conv2d.default, _aten.conv2d.padding, _aten.linear.default}
# What a quantiser does as well: before them nothing has to be rounded.
_SATURATING = {_aten.relu.default, _aten.hardtanh.default, _aten.clamp.default, clamp_bound}


class EightBits(fx.Interpreter):
    """A sanitised graph, exact and with inputs, weights and activations rounded.

    Args:
        module: in float64, with one output in a tuple.
        samples: whose smallest and largest values are the ends of the steps.
        weight_bits: of the weights, the sign among them.

    Attributes:
        exact: the output on the samples, in float64.
        rounded: the same with everything rounded.
        sites: by site, its exact activation after the clamp.
    """

    def __init__(self, module: fx.GraphModule, samples: Tensor, weight_bits: int = 8) -> None:
        super().__init__(module)
        self._largest_weight = 2 ** (weight_bits - 1) - 1
        self.sites: dict[str, Tensor] = {}
        self._ends: dict[str, tuple[float, float]] = {}
        self._rounding = False
        with torch.no_grad():
            (self.exact,) = self.run(samples)
            self._rounding = True
            (self.rounded,) = self.run(samples)

    def run_node(self, n: fx.Node) -> Any:
        if self._rounding and n.target in _LAYERS:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            result = n.target(args[0], _rounded_weight(args[1], self._largest_weight), *args[2:], **kwargs)  # type: ignore[operator]
        else:
            result = super().run_node(n)
        if n.target is clamp_bound and not self._rounding:
            self.sites[n.meta["site"]] = result
        if n.op == "get_attr" or not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        if len(n.users) == 1 and next(iter(n.users)).target in _SATURATING:
            return result
        if not self._rounding:
            self._ends[n.name] = min(result.min().item(), 0.0), max(result.max().item(), 0.0)
            return result
        lower, upper = self._ends[n.name]
        step = (upper - lower) / 255 or 1.0
        return ((result / step).round() * step).clamp(lower, upper)


def _rounded_weight(weight: Tensor, largest: int) -> Tensor:
    step = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / largest
    return torch.where(step > 0, (weight / step).round() * step, weight)
