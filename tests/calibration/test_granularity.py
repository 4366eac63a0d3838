"""How activations fall into units."""

import pytest
import torch

from unit_fast.calibration.granularity import (
    GRANULARITIES,
    Granularity,
    check_granularity,
    from_units,
    to_units,
    unit_count,
    unit_shape,
)
from unit_fast.errors import DataError, UnitFastError
from unit_fast.sites import Site

CONV = Site("conv", "relu", (4, 3, 5), 1, "relu")
LINEAR = Site("linear", "relu", (6,), -1, "relu")
FLAT_CHANNELS = Site("flat", "relu", (6,), 1, "relu")
TOKENS = Site("tokens", "gelu", (7, 6), -1, "gelu")

SHAPES = {
    (CONV, "neuron"): (4, 3, 5),
    (CONV, "channel"): (4, 1, 1),
    (CONV, "tensor"): (),
    (LINEAR, "neuron"): (6,),
    (LINEAR, "channel"): (6,),
    (LINEAR, "tensor"): (),
    (FLAT_CHANNELS, "channel"): (6,),
    (TOKENS, "neuron"): (7, 6),
    (TOKENS, "channel"): (1, 6),
    (TOKENS, "tensor"): (),
}
# What numpy reduces over, in the batched activation.
AXES = {
    (CONV, "channel"): (0, 2, 3),
    (LINEAR, "channel"): (0,),
    (FLAT_CHANNELS, "channel"): (0,),
    (TOKENS, "channel"): (0, 1),
}
cases = pytest.mark.parametrize(
    ("site", "granularity"), list(SHAPES), ids=lambda v: v if isinstance(v, str) else v.name
)


@cases
def test_bounds_broadcast_to_one_sample(site: Site, granularity: Granularity) -> None:
    shape = unit_shape(site, granularity)
    assert shape == SHAPES[site, granularity]
    assert torch.broadcast_shapes(shape, site.shape) == torch.Size(site.shape)


@cases
def test_units_gather_what_shares_a_bound(site: Site, granularity: Granularity) -> None:
    activation = torch.randn(9, *site.shape, generator=torch.Generator().manual_seed(0))
    units = to_units(activation, site, granularity)
    assert units.shape == (activation.numel() // unit_count(site, granularity), unit_count(site, granularity))
    axes = AXES.get((site, granularity), (0,) if granularity == "neuron" else tuple(range(activation.ndim)))
    truth = activation.numpy().max(axes, keepdims=True)[0]
    found = from_units(units.amax(0), site, granularity)
    assert found.shape == SHAPES[site, granularity]
    assert torch.equal(found.expand(site.shape), torch.from_numpy(truth).expand(site.shape))


def test_channels_last_memory_changes_nothing() -> None:
    activation = torch.randn(2, 4, 3, 5)
    last = activation.to(memory_format=torch.channels_last)
    for granularity in GRANULARITIES:
        assert torch.equal(to_units(activation, CONV, granularity), to_units(last, CONV, granularity))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_images_of_another_size_are_refused(granularity: Granularity) -> None:
    with pytest.raises(DataError, match=r"site conv: expected activations of shape \(N, 4, 3, 5\), got \(2, 4, 3, 6\)"):
        to_units(torch.zeros(2, 4, 3, 6), CONV, granularity)


def test_unknown_granularity_is_refused() -> None:
    assert check_granularity("channel") == "channel"
    with pytest.raises(UnitFastError, match="one of 'neuron', 'channel', 'tensor'; got 'layer'"):
        check_granularity("layer")
