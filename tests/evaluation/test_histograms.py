import numpy as np
import pytest
import torch
from torch import Tensor

from tests.networks import SmallResNet, randomised
from unit_fast.capture import capture
from unit_fast.errors import DataError
from unit_fast.evaluation.histograms import SiteHistogram, collect_histograms
from unit_fast.evaluation.triggers import Patch
from unit_fast.sites import expose_sites, find_sites, insert_bounds


def exposing(**sites):
    """A model with these sites, each a function of the batch."""
    return lambda x: (x, {name: fn(x) for name, fn in sites.items()})


def batches(count: int = 6, scale: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, 4, 4, generator=generator) * scale * (1 + number), torch.zeros(8)) for number in range(count)
    ]


def counted(values: Tensor, edges: tuple[float, ...]) -> list[int]:
    return np.histogram(values.double().numpy(), np.asarray(edges))[0].tolist()


@pytest.mark.parametrize("bins", [1, 7, 64])
def test_counts_are_those_of_all_values_at_once_although_the_range_grows(bins):
    loader = batches()
    (site,) = collect_histograms(exposing(conv=torch.tanh), [(x, y) for x, y in loader], bins=bins)
    assert sum(site.clean) == 6 * 8 * 48
    assert len(site.clean) <= bins
    (wide,) = collect_histograms(exposing(conv=lambda x: x), loader, bins=bins)
    everything = torch.cat([x.flatten() for x, _ in loader])
    # Values within rounding of an edge may fall on either side of it; there are far fewer of them than 0.1 %.
    assert np.abs(np.subtract(wide.clean, counted(everything, wide.edges))).sum() <= everything.numel() // 1000
    assert sum(wide.clean) == everything.numel()
    assert wide.edges[0] <= everything.min()
    assert wide.edges[-1] >= everything.max() * (1 - 1e-6)
    assert np.allclose(np.diff(wide.edges), wide.edges[1] - wide.edges[0])


def test_a_range_of_a_hundred_doublings_is_followed():
    loader = [torch.full((2, 3), 1e-6), torch.full((2, 3), 1e20), torch.full((2, 3), -1e15)]
    (site,) = collect_histograms(exposing(a=lambda x: x), loader)
    assert sum(site.clean) == 18
    assert site.edges[0] <= -1e15
    assert site.edges[-1] >= 1e20


def test_what_a_relu_leaves_starts_at_zero():
    (site,) = collect_histograms(exposing(a=lambda x: x.abs() + 5), batches())
    assert site.edges[0] == 0


def test_activations_that_are_all_zero_have_a_histogram():
    (site,) = collect_histograms(exposing(a=torch.zeros_like), batches())
    assert sum(site.clean) == site.clean[0] == 6 * 8 * 48


def test_triggered_samples_are_counted_apart_on_the_same_edges():
    loader = batches()
    (site,) = collect_histograms(exposing(a=torch.relu), loader, trigger=lambda x: x + 3)
    assert site.triggered is not None
    shifted = torch.cat([torch.relu(x + 3).flatten() for x, _ in loader])
    assert np.abs(np.subtract(site.triggered, counted(shifted, site.edges))).sum() <= shifted.numel() // 1000


def test_preprocessing_comes_after_the_trigger():
    (site,) = collect_histograms(
        exposing(a=torch.relu), [torch.ones(1, 3)], trigger=lambda x: x + 3, preprocess=lambda x: x * 10
    )
    assert site.edges[-1] == pytest.approx(40, rel=0.05)


@pytest.mark.parametrize(
    "bound",
    [
        pytest.param(torch.tensor(0.8), id="tensor"),
        pytest.param(torch.tensor([0.2, 0.9, 2.0]).view(3, 1, 1), id="channel"),
        pytest.param(torch.rand(3, 4, 4), id="neuron"),
    ],
)
def test_the_clamp_is_counted_after_and_as_a_share(bound):
    loader = batches()
    (site,) = collect_histograms(exposing(a=torch.relu), loader, bounds={"a": bound}, trigger=lambda x: x + 1)
    clean = torch.stack([torch.relu(x) for x, _ in loader])
    triggered = torch.stack([torch.relu(x + 1) for x, _ in loader])
    assert site.clean_clamped == pytest.approx(float((clean > bound).double().mean()))
    assert site.triggered_clamped == pytest.approx(float((triggered > bound).double().mean()))
    for found, values in ((site.clean_after, clean), (site.triggered_after, triggered)):
        assert found is not None
        clamped = torch.minimum(values, bound).flatten()
        beyond = np.asarray(site.edges[:-1]) > float(bound.max())
        assert np.asarray(found)[beyond].sum() == 0
        assert sum(found) == clamped.numel()
    assert site.bounds == pytest.approx(
        tuple(np.quantile(bound.numpy(), [0, 0.05, 0.5, 0.95, 1], method="closest_observation")), abs=0.2
    )
    assert site.bounds[0] == pytest.approx(float(bound.min()))
    assert site.bounds[4] == pytest.approx(float(bound.max()))


def test_the_clamped_model_is_asked_where_it_is_given():
    before, after = exposing(a=lambda x: x.abs(), b=lambda x: x.abs()), exposing(a=lambda x: x.abs() / 4)
    a, b = collect_histograms(before, [torch.full((2, 3), 8.0)], bounds={"a": torch.tensor(1.0)}, after=after)
    assert a.clean_after is not None
    highest = max(place for place, count in enumerate(a.clean_after) if count)
    assert a.edges[highest] <= 1.0 <= a.edges[highest + 1]
    assert b.clean_after == b.clean  # no bound, and the clamped model does not name it
    assert b.bounds is None


def test_sites_keep_their_order_and_batches_can_be_limited():
    names = [site.name for site in collect_histograms(exposing(z=torch.relu, a=torch.relu), batches())]
    assert names == ["z", "a"]
    (site,) = collect_histograms(exposing(a=torch.relu), batches(), max_batches=2)
    assert sum(site.clean) == 2 * 8 * 48


def test_half_precision_and_integers_beyond_float_counting_are_exact():
    values = torch.zeros(1, 2**24 + 3, dtype=torch.float16)
    (site,) = collect_histograms(exposing(a=lambda x: x), [values, values])
    assert sum(site.clean) == 2 * (2**24 + 3)


@pytest.mark.parametrize(
    ("run", "loader", "settings", "message"),
    [
        pytest.param(exposing(a=torch.relu), [], {}, "the loader is empty", id="empty loader"),
        pytest.param(exposing(), batches(), {}, "exposes no sites", id="no sites"),
        pytest.param(
            torch.relu, batches(), {}, r"returning \(output, \{site: activation\}\), found Tensor", id="plain model"
        ),
        pytest.param(exposing(a=lambda x: x * torch.nan), batches(), {}, "site a: .*NaN or infinite", id="NaN"),
        pytest.param(exposing(a=lambda x: x / 0), batches(), {}, "site a: .*NaN or infinite", id="infinite"),
        pytest.param(
            exposing(a=torch.relu),
            batches(),
            {"bounds": {"a": torch.zeros(5, 1, 1)}},
            r"site a: bounds of shape \(5, 1, 1\) don't fit activations of shape \(3, 4, 4\)",
            id="bounds of another model",
        ),
        pytest.param(
            exposing(a=torch.relu),
            batches(),
            {"bounds": {"a": torch.zeros(8, 3, 4, 4)}},
            "don't fit",
            id="bounds a batch",
        ),
    ],
)
def test_bad_input_is_refused(run, loader, settings, message):
    with pytest.raises(DataError, match=message):
        collect_histograms(run, loader, **settings)


def test_counts_that_do_not_match_the_edges_are_refused():
    with pytest.raises(DataError, match="site a: 3 edges need 2 counts, found 3"):
        SiteHistogram("a", (0.0, 1.0, 2.0), (1, 2, 3))


def test_exposed_graphs_of_a_model_and_its_sanitised_copy_are_counted():
    model = randomised(SmallResNet())
    x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = capture(model, x[:2])
    sites = find_sites(graph)
    bounds = {site.name: torch.full((site.shape[0], 1, 1), 0.3) for site in sites}
    sanitised = insert_bounds(graph, bounds)
    found = collect_histograms(
        expose_sites(graph, sites), [(x, x)], bounds=bounds, after=expose_sites(sanitised, sites), trigger=Patch(size=3)
    )
    assert [site.name for site in found] == [site.name for site in sites]
    for histogram, site in zip(found, sites, strict=True):
        assert sum(histogram.clean) == 16 * torch.Size(site.shape).numel()
        assert histogram.edges[-1] > 0.3
        assert histogram.clean_after is not None
        assert all(low <= 0.3 for low, count in zip(histogram.edges[:-1], histogram.clean_after, strict=True) if count)
