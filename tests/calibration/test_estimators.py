"""Bounds from statistics against numpy over all activations at once."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.networks import PlainVGG, randomised
from unit_fast.bounds import Bounds
from unit_fast.calibration import Maximum, MeanStd, Percentile, calibrate
from unit_fast.calibration.context import Method
from unit_fast.calibration.granularity import GRANULARITIES, Granularity
from unit_fast.errors import UnitFastError

X = torch.randn(90, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
Y = torch.arange(90) % 5


def network() -> PlainVGG:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(PlainVGG())


class InOrder:
    """Makes a method fit on the first samples of each class, so that the test knows which."""

    def __init__(self, method: type[Method]) -> None:
        self.method = method

    def __call__(self, *args: Any, **settings: Any) -> Method:
        kind = type(self.method.__name__, (self.method,), {"shuffles_split": property(lambda _: False)})
        return kind(*args, **settings)


def activations() -> dict[str, np.ndarray]:
    """Of the fit samples, from hooks on the model itself: nothing of ours but the split's rule."""
    model = network()
    fit = torch.cat([(label == Y).nonzero().flatten()[: int(0.8 * 18)] for label in range(5)])
    found: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ELU):
            module.register_forward_hook(
                lambda _module, _input, output, key=name: found.update({key: output.double().numpy()})
            )
    with torch.no_grad():
        model(X[fit])
    return found


def fitted(method: Method, granularity: Granularity, batch_size: int = 16) -> Bounds:
    loader = zip(X.split(20), Y.split(20), strict=True)
    return calibrate(network(), loader, method, granularity, batch_size=batch_size)


AXES = {"neuron": (0,), "channel": (0, 2, 3), "tensor": (0, 1, 2, 3)}
SHAPES = {"neuron": (8, 8, 8), "channel": (8, 1, 1), "tensor": ()}


def expected(statistic: Any, granularity: Granularity) -> dict[str, np.ndarray]:
    return {name: statistic(values, AXES[granularity]) for name, values in activations().items()}


def assert_bounds(bounds: Bounds, truth: dict[str, np.ndarray], granularity: Granularity, rtol: float = 1e-5) -> None:
    assert list(bounds) == list(truth) == ["features.2", "features.6"]
    assert tuple(bounds["features.2"].shape) == SHAPES[granularity]
    for name, values in truth.items():
        np.testing.assert_allclose(bounds[name].numpy().squeeze(), np.squeeze(values), rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("k", [0.0, 4.0])
def test_mean_plus_k_deviations(granularity: Granularity, k: float) -> None:
    truth = expected(lambda values, axes: values.mean(axes) + k * values.std(axes, ddof=1), granularity)
    assert_bounds(fitted(InOrder(MeanStd)(k), granularity), truth, granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_maximum(granularity: Granularity) -> None:
    truth = expected(lambda values, axes: values.max(axes), granularity)
    assert_bounds(fitted(InOrder(Maximum)(), granularity), truth, granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("q", [0.5, 0.9, 0.99, 1.0])
def test_percentile_is_exact_on_small_data(granularity: Granularity, q: float) -> None:
    truth = expected(lambda values, axes: np.quantile(values, q, axes), granularity)
    bounds = fitted(InOrder(Percentile)(q, capacity=2**16), granularity)
    assert_bounds(bounds, truth, granularity)
    assert bounds.metadata["rank_error"] == {"guaranteed": 0.0, "likely": 0.0}


def test_percentile_keeps_its_stated_error_beyond_its_capacity() -> None:
    bounds = fitted(InOrder(Percentile)(0.9, capacity=256), "tensor")
    error = bounds.metadata["rank_error"]["guaranteed"]
    assert 0 < error < 0.3
    for name, values in activations().items():
        rank = (values < float(bounds[name])).mean()
        assert abs(rank - 0.9) <= error + 1e-6


def test_percentile_in_many_passes_finds_the_same() -> None:
    # 1 MiB holds 512 units of 512 items: the 768 units here take 2 passes, and one site is cut in two.
    reports = []
    method = Percentile(0.9, capacity=512, memory=2**20)
    loader = zip(X.split(20), Y.split(20), strict=True)
    cut = calibrate(network(), loader, method, progress=reports.append, batch_size=16)
    whole = fitted(Percentile(0.9, capacity=512), "neuron")
    for name, bound in whole.items():
        assert torch.equal(cut[name], bound)
    assert reports[-1].total == 2 * 5  # 70 fit samples, 16 at a time
    assert [report.step for report in reports] == list(range(1, 11))
    assert reports[-1].seconds_left == 0


@pytest.mark.parametrize("method", [MeanStd(), Percentile(0.9), Maximum()], ids=lambda method: method.name)
def test_the_batch_size_does_not_matter(method: Method) -> None:
    small, large = fitted(method, "channel", 7), fitted(method, "channel", 90)
    for name, bound in small.items():
        torch.testing.assert_close(bound, large[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanStd(-1.0), r"MeanStd: k must be a finite number of at least 0; got -1.0"),
        (lambda: MeanStd(float("nan")), "MeanStd: k"),
        (lambda: MeanStd(float("inf")), "MeanStd: k"),
        (lambda: Percentile(0.0), "Percentile: q must be above 0"),
        (lambda: Percentile(99), r"0.99 is the 99th percentile\); got 99"),
        (lambda: Percentile(float("nan")), "Percentile: q"),
        (lambda: Percentile(0.9, capacity=10), "capacity must be at least 64; got 10"),
        (lambda: Percentile(0.9, memory=100), "memory must be at least 1 MiB"),
    ],
    ids=["k-negative", "k-nan", "k-infinite", "q-zero", "q-percent", "q-nan", "capacity", "memory"],
)
def test_settings_out_of_range_are_refused_when_made(make: Any, message: str) -> None:
    with pytest.raises(UnitFastError, match=message):
        make()
