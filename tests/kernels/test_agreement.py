"""The measure of agreement: what it lets pass, and that nothing else does."""

from __future__ import annotations

import math

import pytest
import torch

from unit_fast.kernels.agreement import TOLERANCE, error, tolerance_of

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("actual", "exact", "expected"),
    [
        pytest.param([1.0, 2.0], [1.0, 2.5], 0.5 / 3.5, id="relative_to_one_and_the_value"),
        pytest.param([0.25], [0.0], 0.25, id="absolute_near_zero"),
        pytest.param([NAN, INF, -INF], [NAN, INF, -INF], 0.0, id="alike_without_being_finite"),
        pytest.param([NAN, 1.0], [1.0, 1.0], INF, id="nan_where_a_number_belongs"),
        pytest.param([1.0], [NAN], INF, id="number_where_nan_belongs"),
        pytest.param([INF], [-INF], INF, id="other_infinity"),
        pytest.param([65504.0], [INF], INF, id="finite_where_infinity_belongs"),
        pytest.param([INF], [1.0], INF, id="infinity_where_a_number_belongs"),
        pytest.param([], [], 0.0, id="nothing"),
    ],
)
def test_error(actual, exact, expected):
    assert error(torch.tensor(actual), torch.tensor(exact, dtype=torch.float64)) == pytest.approx(expected)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) where \(1, 2\)"):
        error(torch.zeros(2), torch.zeros(1, 2))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_one_rounding_agrees_and_fifty_do_not(dtype):
    exact = torch.linspace(1, 2, 1001, dtype=torch.float64)
    assert error(exact.to(dtype), exact) < tolerance_of(dtype)
    wrong = (exact * (1 + 50 * torch.finfo(dtype).eps)).to(dtype)
    assert error(wrong, exact) > tolerance_of(dtype)


def test_only_float32_products_have_precisions():
    assert tolerance_of(torch.float32) < tolerance_of(torch.float32, "tf32x3") < tolerance_of(torch.float32, "tf32")
    assert tolerance_of(torch.float16, "tf32") == TOLERANCE[torch.float16]
