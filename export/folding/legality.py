"""May the bound of a site be folded, and what does its activation saturate at?

Only activations that are positively homogeneous below their bound can: relu(z) / b = relu(z / b). ReLU6 and
Hardtanh(0, K) are ReLUs with a bound of their own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
# A bound that counts as 0 is wrong by less than `smallest`: no more than rounding beside one so many times larger.
_NEGLIGIBLE = 1e10


@dataclass(frozen=True)
class Foldable:
    """A bound that may be folded.

    Attributes:
        scale: what the activation is divided by; 1 where the bound is 0. float64, above 0.
        factor: what the layer before is multiplied by: 1 / scale, and 0 where the bound is 0, so that the activation
            is 0 there in the folded graph too.
    """

    scale: Tensor
    factor: Tensor


def ceiling(activation: Any) -> float | None:
    """What ``activation`` limits its result to: +inf for ReLU, K for Hardtanh(0, K); None when it is neither."""
    if not isinstance(activation, fx.Node) or activation.op != "call_function":
        return None
    if activation.target is _aten.relu.default:
        return float("inf")
    if activation.target is _aten.relu6.default:
        return 6.0
    if activation.target is _aten.hardtanh.default:
        given: list[Any] = [*activation.args[1:]]
        low, high = given + [-1.0, 1.0][len(given) :]
    elif activation.target in (_aten.clamp.default, _aten.clamp_min.default):
        low = activation.args[1] if len(activation.args) > 1 else activation.kwargs.get("min")
        high = activation.args[2] if len(activation.args) > 2 else activation.kwargs.get("max")
        high = float("inf") if high is None else high
    else:
        return None
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low != 0 or high <= 0:
        return None
    return float(high)


def judge(bound: Tensor, top: float | None, limit: float, smallest: float, largest: float) -> Foldable | str:
    """The scale that makes ``bound`` the number ``limit``, or why there is none.

    Args:
        bound: of the site, free of NaN and −inf.
        top: what the activation itself saturates at, from :func:`ceiling`.
        limit: the bound afterwards.
        smallest: scales below it count as 0 beside larger ones.
        largest: scales above it are refused.
    """
    if top is None:
        return "its activation is no ReLU, ReLU6 or Hardtanh(0, K): only those can be divided by a bound"
    if bool((bound < 0).any()):
        return "a bound is negative"
    scale = bound.double().clamp(max=top) / limit
    if bool(torch.isinf(scale).any()):
        return "a bound is +inf"
    if scale.max() > largest:
        return f"a bound of {scale.max().item() * limit:.3g} is too large to multiply by"
    tiny = (scale > 0) & (scale < smallest)
    if bool(tiny.any()) and scale.max() < smallest * _NEGLIGIBLE:
        return f"a bound of {scale[tiny].min().item() * limit:.3g} is too small to divide by"
    dead = scale < smallest
    return Foldable(torch.where(dead, 1.0, scale), torch.where(dead, 0.0, 1 / torch.where(dead, 1.0, scale)))
