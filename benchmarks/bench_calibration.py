"""Calibration by method, on 500 random images; ``benchmarks.calibration`` has the comparison with the published one."""

from typing import Any

import pytest
import torch

import unit_fast as uf
from benchmarks.conftest import DEVICE
from benchmarks.models import make
from tests.gtsrb import CLASSES

METHODS = {
    "mean-std": uf.MeanStd(4.0),
    "percentile": uf.Percentile(0.99),
    "maximum": uf.Maximum(),
    "unit": uf.Unit(steps=20),
    "unit as published": uf.Unit(recipe="paper", steps=20),  # the whole fit set a step
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", ["neuron", "channel"])
def test_calibration(benchmark: Any, granularity: str, method: str) -> None:
    """Bounds of a VGG for traffic signs."""
    model, _ = make("vgg_32")
    model = model.to(DEVICE)
    x = torch.rand(500, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loader = [(x, torch.arange(500) % CLASSES)]
    benchmark.group = f"calibration per {granularity}"
    benchmark.extra_info.update(provider=method, images=500, device=str(DEVICE))
    bounds = benchmark.pedantic(uf.calibrate, (model, loader, METHODS[method], granularity), rounds=3, iterations=1)
    assert all(bool(bound.isfinite().all()) for bound in bounds.values())
