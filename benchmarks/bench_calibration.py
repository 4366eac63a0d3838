"""Calibration by method, on 500 images; ``benchmarks.calibration`` has the comparison with the published one.

``bytes`` and ``flops`` are those of one pass over the images, which is what statistics take at least; a search takes
more. The percentage of the roofline is that of one pass too.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import unit_fast as uf
from benchmarks.conftest import DEVICE, l2_of, least_seconds
from benchmarks.models import make
from benchmarks.roofline import work_of
from benchmarks.shapes import layers_of
from unit_fast.bounds import Granularity
from unit_fast.calibration.context import Method
from unit_fast.capture import capture
from unit_fast.sites import expose_sites, find_sites

METHODS: dict[str, Method] = {
    "mean-std": uf.MeanStd(4.0),
    "percentile": uf.Percentile(0.99),
    "maximum": uf.Maximum(),
    "unit": uf.Unit(steps=20),
    "unit as published": uf.Unit(recipe="paper", steps=20),  # the whole fit set a step
}
KINDS, COPIES = 25, 20
"""Distinct images, one a class: so whichever 16 of a class are drawn to be fitted to, their statistics are known."""
FITTED = 16
WITHIN = {"mean-std": 1e-4, "percentile": 0.01, "maximum": 1e-6}
TOLERANCE = 0.03  # of both searches: the accuracy that may be lost on the samples held out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", ["neuron", "channel"])
def test_calibration(benchmark: Any, granularity: Granularity, method: str) -> None:
    """Bounds of a VGG for traffic signs."""
    model, _ = make("vgg_32")
    model = model.to(DEVICE)
    images = torch.rand(KINDS, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loader = [(images.repeat_interleave(COPIES, 0), torch.arange(KINDS).repeat_interleave(COPIES))]

    def calibrated() -> uf.Bounds:
        return uf.calibrate(model, loader, METHODS[method], granularity)

    found = _error(method, calibrated(), model, images.to(DEVICE), granularity)
    allowed = WITHIN.get(method, TOLERANCE)
    assert found <= allowed, f"{method} is off by {found:.3g}, allowed is {allowed:.3g}"
    batch = KINDS * COPIES
    moved, operations = work_of(layers_of("vgg_32"), batch, 4)
    benchmark.group = f"calibration per {granularity}"
    benchmark.extra_info |= {"provider": method, "error": found, "device": str(DEVICE), "images": batch}
    benchmark.extra_info |= {"bytes": moved, "flops": operations, "l2": l2_of(moved)}
    # Bounds lie on the CPU in the end, so on a GPU the host's clock has waited for it; it takes seconds.
    benchmark.pedantic(calibrated, rounds=3, iterations=1)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["percent_of_roofline"] = 100 * least_seconds(moved, operations) / seconds


def _error(method: str, bounds: uf.Bounds, model: torch.nn.Module, images: Tensor, granularity: Granularity) -> float:
    """How far bounds are from what their method says, over the activations it saw; of a search the accuracy lost."""
    if method not in WITHIN:
        accuracy = bounds.metadata["accuracy"]
        return float(accuracy["validation_before"] - accuracy["validation_after"])
    graph = capture(model, images)
    with torch.no_grad():
        _, activations = expose_sites(graph, find_sites(graph))(images)
    errors = []
    for name, bound in bounds.items():
        values = activations[name].double().cpu().repeat_interleave(FITTED, 0)
        if granularity == "channel" and values.dim() == 4:
            values = values.transpose(1, 3).reshape(-1, values.shape[1])
        errors.append(_statistic_error(method, values.flatten(1), bound.double().flatten()))
    return max(errors)


def _statistic_error(method: str, values: Tensor, bound: Tensor) -> float:
    if method == "percentile":  # so many lie above it, and no fewer at it or above
        above, reached = (values > bound).double().mean(0), (values >= bound).double().mean(0)
        return float(torch.maximum(above - 0.01, 0.01 - reached).clamp_min(0).max())
    exact = values.amax(0) if method == "maximum" else values.mean(0) + 4 * values.std(0)
    return float(((bound - exact).abs() / (1 + exact.abs())).max())
