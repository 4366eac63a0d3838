"""Settings of a wrong type are refused where they are made."""

from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import unit_fast as uf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uf.Unit(steps="5"), r"Unit: steps must be a whole number or None; got '5', a str"),
        (lambda: uf.Unit(steps=5.0), r"Unit: steps must be a whole number or None; got 5.0, a float"),
        (lambda: uf.Unit(batch_size=True), r"Unit: batch_size must be a whole number or None; got True, a bool"),
        (lambda: uf.Unit(tolerance=None), r"Unit: tolerance must be a number; got None, a NoneType"),
        (lambda: uf.Unit(learning_rate=[1]), r"Unit: learning_rate must be a number or None; got \[1\], a list"),
        (lambda: uf.MeanStd("3"), r"MeanStd: k must be a number; got '3', a str"),
        (lambda: uf.Percentile("99%"), r"Percentile: q must be a number; got '99%', a str"),
    ],
)
def test_other_types_are_refused(make, message):
    with pytest.raises(uf.UnitFastError, match=message):
        make()


def test_numbers_of_any_kind_are_taken():
    assert uf.MeanStd(3) == uf.MeanStd(np.float32(3))
    assert uf.Unit(steps=np.int64(5)).steps == 5


@pytest.mark.parametrize(
    "method",
    [
        uf.MeanStd(np.float32(3)),
        uf.MeanStd(Fraction(3)),
        uf.Percentile(np.float32(0.5), np.int64(64), memory=np.uint32(2**20)),
        uf.Unit(np.float64(0.9), "paper", np.int64(1), Fraction(1, 100), np.int8(16)),
    ],
    ids=["float32", "fraction", "percentile", "unit"],
)
def test_numbers_of_any_kind_calibrate_and_come_back_from_the_file(method, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
    bounds = uf.calibrate(model, [(x, torch.arange(40) % 2)], method)
    assert uf.Bounds.load(bounds.save(tmp_path / "bounds")).metadata["settings"] == asdict(method)


@pytest.mark.parametrize("k", [10**400, Fraction(10**5000)], ids=["whole", "fraction"])
def test_numbers_that_no_float_holds_are_refused(k):
    with pytest.raises(uf.UnitFastError, match="MeanStd: k must be a number that a float can hold; got a larger one"):
        uf.MeanStd(k)


@pytest.mark.parametrize("size", ["128", 1.5, True, 0])
def test_batch_sizes_that_are_none_are_refused(size):
    with pytest.raises(uf.UnitFastError, match="batch_size must be at least 1, a whole number"):
        uf.calibrate(None, [], batch_size=size)
