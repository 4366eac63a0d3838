"""The growing histogram against numpy's."""

import numpy as np
import pytest
import torch

from unit_fast.calibration.histogram import BINS, GrowingHistogram


def counted(*batches: torch.Tensor) -> GrowingHistogram:
    histogram = GrowingHistogram()
    for batch in batches:
        histogram.update(batch, float(batch.min()), float(batch.max()))
    return histogram


@pytest.mark.parametrize("scales", [(1, 1, 1), (1, 10, 0.1), (1e-3, 1e3, 1), (5, -8, 300)], ids=str)
@pytest.mark.parametrize("kind", ["relu", "gelu", "randn"])
def test_counts_are_numpys_over_the_same_edges(kind: str, scales: tuple[float, ...]) -> None:
    function = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "randn": lambda x: x}[kind]
    generator = torch.Generator().manual_seed(0)
    batches = [function(torch.randn(500, generator=generator) * scale) for scale in scales]
    histogram = counted(*batches)
    values = torch.cat(batches)
    edges = histogram.edges.double().numpy()
    assert int(histogram.counts.sum()) == len(values)
    assert edges[0] <= float(values.min()) + 1e-6
    assert edges[-1] >= float(values.max()) - 1e-6
    truth, _ = np.histogram(values.double().numpy(), edges)
    # A value within float32 rounding of an edge may fall on either side.
    assert np.abs(np.cumsum(truth)[:-1] - histogram.counts.cumsum(0).numpy()[:-1]).max() <= 2


def test_the_range_is_at_most_twice_what_is_needed() -> None:
    values = torch.linspace(0, 100, 1000)
    histogram = counted(*values.split(10))
    assert len(histogram.counts) > BINS // 2 - 2
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e6, -1e6])
def test_a_constant_falls_into_one_bin(value: float) -> None:
    histogram = counted(torch.full((8,), value), torch.full((4,), value))
    assert histogram.counts.tolist() == [12]
    assert histogram.edges[0] <= value <= histogram.edges[-1]


def test_batches_in_another_order_cover_the_same_values() -> None:
    small, large = torch.linspace(-1, 1, 50), torch.linspace(-70, 90, 70)
    for histogram in (counted(small, large), counted(large, small)):
        assert int(histogram.counts.sum()) == 120
        assert histogram.edges[0] <= -70
        assert histogram.edges[-1] >= 90
