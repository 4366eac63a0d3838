"""How fine bounds are: the one place that knows how a site's activations fall into units.

A unit is what shares one bound: a neuron (one element of the site's shape), a channel, or the whole tensor. Every
result broadcasts against one sample of the site by numpy's rules.
"""

from math import prod
from typing import get_args

from torch import Tensor

from unit_fast.bounds import Granularity
from unit_fast.bounds import bound_shape as unit_shape
from unit_fast.errors import DataError, UnitFastError
from unit_fast.sites import Site

__all__ = ["GRANULARITIES", "Granularity", "check_granularity", "from_units", "to_units", "unit_count", "unit_shape"]

GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


def check_granularity(granularity: str) -> Granularity:
    """``granularity`` as it is, or UnitFastError naming the ones there are."""
    for known in GRANULARITIES:
        if granularity == known:
            return known
    raise UnitFastError(f"granularity must be one of {', '.join(map(repr, GRANULARITIES))}; got {granularity!r}")


def unit_count(site: Site, granularity: Granularity) -> int:
    """How many bounds the site has."""
    return prod(unit_shape(site, granularity))


def to_units(activation: Tensor, site: Site, granularity: Granularity) -> Tensor:
    """Bring activations into rows of observations: (N, *site.shape) to (observations, units).

    neuron: (N, elements), statistics run over the batch only; channel: (N · positions, C), over batch and
    positions; tensor: (N · elements, 1), over everything.

    Raises:
        DataError: the activation has not the site's shape (images of another size).
    """
    if tuple(activation.shape[1:]) != tuple(site.shape):
        raise DataError(
            f"site {site.name}: expected activations of shape (N, {', '.join(map(str, site.shape))}), got "
            f"{tuple(activation.shape)}; give samples of the size the model was captured with"
        )
    if granularity == "tensor":
        return activation.reshape(-1, 1)
    if granularity == "neuron":
        return activation.flatten(1)
    return activation.movedim(site.channel_axis, -1).flatten(0, -2)


def from_units(values: Tensor, site: Site, granularity: Granularity) -> Tensor:
    """Shape one value a unit, (units,), as the site's bound: the inverse of :func:`to_units` for one observation."""
    return values.reshape(unit_shape(site, granularity))
