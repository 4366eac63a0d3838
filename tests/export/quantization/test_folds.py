"""Which sites are folded is decided by what the layers behind lose, measured here against plain rounding."""

import torch
from torch import Tensor, nn

from unit_fast.calibration.samples import SampleStore
from unit_fast.capture import capture
from unit_fast.export.flat import FlatGraph, flatten_graph
from unit_fast.export.quantization.folds import choose_folds
from unit_fast.sites import find_sites, insert_bounds


def graph_with(first: Tensor, second: Tensor, bound: Tensor, images: Tensor) -> tuple[FlatGraph, str]:
    """A convolution, relu, bounds by channel, and the layer that would take the bounds up."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(first.reshape(4, 3, 1, 1))
        model[2].weight.copy_(second.reshape(2, 4, 1, 1))
    captured = capture(model, images[:2])
    (site,) = find_sites(captured)
    sanitised = insert_bounds(captured, {site.name: bound.reshape(4, 1, 1)})
    return flatten_graph(sanitised, images[:2]), site.name


def decide(bound: list[float], second: list[float], form: str = "auto") -> tuple[frozenset[str] | None, dict]:
    torch.manual_seed(0)
    images = torch.randn(64, 3, 6, 6)
    first = torch.randn(4, 3) * torch.tensor(bound).reshape(4, 1)
    graph, _ = graph_with(first, torch.tensor([second, second[::-1]]), torch.tensor(bound), images)
    with SampleStore([images]) as samples:
        choice, losses = choose_folds(graph, form, samples, 8)
    return choice.only if choice.fold == "all" else None, losses


def test_channels_that_matter_alike_are_folded() -> None:
    only, losses = decide([1.0, 1.5, 0.7, 1.2], [1.0, -0.5, 0.8, 0.6])

    assert only == {"1"}
    assert not losses


def test_a_site_stays_where_folding_would_round_the_weights_behind_to_nothing() -> None:
    """One channel has a bound far above what it ever reaches, so its column would stretch every row's range."""
    torch.manual_seed(0)
    images = torch.randn(64, 3, 6, 6)
    first = torch.randn(4, 3)
    bound = torch.tensor([1.0, 1.0, 1.0, 1000.0])
    graph, site = graph_with(first, torch.randn(2, 4), bound, images)
    with SampleStore([images]) as samples:
        choice, losses = choose_folds(graph, "auto", samples, 8)
        forced, _ = choose_folds(graph, "folded", samples, 8)

    assert choice.only == frozenset()
    assert losses[site].after < losses[site].before - 1
    assert forced.only == {site}


def test_one_bound_a_site_needs_no_folding() -> None:
    images = torch.randn(64, 3, 6, 6)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    captured = capture(model, images[:2])
    graph = flatten_graph(insert_bounds(captured, {"1": torch.tensor(0.5)}), images[:2])
    with SampleStore([images]) as samples:
        choice, _ = choose_folds(graph, "auto", samples, 8)

    assert choice.fold == "none"
