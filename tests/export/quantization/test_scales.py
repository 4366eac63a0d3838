"""Scales and limits against float32 arithmetic: nothing comes out above its bound, and as little as can be below."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.properties import examples
from unit_fast.export.quantization.scales import (
    LEVELS,
    Quantizer,
    for_bound,
    for_range,
    mean_shift,
    quantise_bias,
    quantise_weight,
)

EVERY_LEVEL = np.arange(256, dtype=np.uint8)
BOUNDS = st.one_of(
    st.floats(-3, 1e3, width=32), st.sampled_from([0.0, -0.0, 1e-40, 1e-30, 1e30, 3e38, float("inf"), -0.25])
)


def quantised(values: np.ndarray, quantizer: Quantizer) -> np.ndarray:
    """What QuantizeLinear, Min and DequantizeLinear make of ``values``, written from the ONNX specification."""
    integers = np.clip(np.rint(values / quantizer.scale) + int(quantizer.zero_point), 0, LEVELS).astype(np.uint8)
    if quantizer.limit is not None:
        integers = np.minimum(integers, quantizer.limit)
    return (integers.astype(np.int32) - int(quantizer.zero_point)).astype(np.float32) * quantizer.scale


@examples(300)
@given(
    bound=hnp.arrays(np.float32, st.integers(1, 6), elements=BOUNDS),
    lower=st.one_of(st.just(0.0), st.floats(-50, 0, width=32)),
    observed=st.floats(0, 100, width=32),
    per_unit=st.booleans(),
)
def test_no_value_comes_out_above_its_bound(bound: np.ndarray, lower: float, observed: float, per_unit: bool) -> None:
    quantizer = for_bound(bound, lower, observed, per_unit=per_unit)

    largest = np.broadcast_to(quantizer.largest, bound.shape)
    assert np.isfinite(quantizer.scale)
    assert quantizer.scale > 0
    assert (largest <= bound).all()
    if quantizer.limit is not None:
        following = quantizer.value(np.minimum(quantizer.limit.astype(int) + 1, LEVELS).astype(np.uint8))
        assert ((following > bound) | (quantizer.limit == LEVELS)).all()


@pytest.mark.parametrize("bound", [0.1, 0.7, 1.0, 3.3, 6.0, 1234.5], ids=str)
def test_one_bound_after_a_relu_is_the_scale(bound: float) -> None:
    quantizer = for_bound(np.asarray(bound, np.float32), 0.0, bound)

    assert quantizer.limit is None
    assert quantizer.zero_point == 0
    values = np.linspace(-bound, 3 * bound, 1001, dtype=np.float32)
    expected = np.clip(values, 0, np.float32(bound))
    assert np.abs(quantised(values, quantizer) - expected).max() <= bound / LEVELS * 0.501
    assert quantised(values, quantizer).max() == pytest.approx(bound, rel=1e-6)


def test_a_bound_far_above_the_data_does_not_waste_the_integers() -> None:
    far = for_bound(np.asarray(100, np.float32), 0.0, 1.0)
    near = for_bound(np.asarray(1.9, np.float32), 0.0, 1.0)

    assert far.largest == pytest.approx(1.0)
    assert near.largest == pytest.approx(1.9)
    assert far.limit is None


def test_unbounded_units_take_the_range_that_was_seen() -> None:
    quantizer = for_bound(np.asarray([np.inf, 2.0], np.float32), 0.0, 5.0, per_unit=True)

    assert quantizer.limit is not None
    assert quantizer.limit.tolist() == [255, 102]


def test_the_lower_end_of_an_elu_is_kept() -> None:
    quantizer = for_bound(np.asarray(3.0, np.float32), -1.0, 3.0)

    assert quantizer.value(EVERY_LEVEL).min() <= -1.0
    assert quantizer.value(EVERY_LEVEL).max() == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize(("lower", "upper"), [(0.0, 4.0), (-3.0, 5.0), (-2.0, -1.0), (0.0, 0.0), (1.0, 9.0)], ids=str)
def test_a_range_is_covered_and_holds_zero(lower: float, upper: float) -> None:
    quantizer = for_range(lower, upper)

    values = np.linspace(lower, upper, 101, dtype=np.float32)
    assert np.abs(quantised(values, quantizer) - values).max() <= float(quantizer.scale) * 1.001
    assert 0.0 in quantizer.value(EVERY_LEVEL)


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 63)])
def test_weights_are_symmetric_within_half_a_step_of_their_channel(bits: int, largest: int) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32) * [
        [[[1]]],
        [[[10]]],
        [[[0.1]]],
        [[[0]]],
    ]
    weight = weight.astype(np.float32)

    integers, scale = quantise_weight(weight, 0, bits)

    assert integers.dtype == np.int8
    assert np.abs(integers[:3]).max((1, 2, 3)).tolist() == [largest] * 3
    assert not integers[3].any()
    error = np.abs(integers * scale.reshape(-1, 1, 1, 1) - weight)
    assert (error <= scale.reshape(-1, 1, 1, 1) * 0.501).all()


def test_a_bias_that_would_overflow_widens_its_channel() -> None:
    weight = np.full((2, 3), 1e-9, np.float32)
    bias = np.asarray([5.0, 0.0], np.float32)

    _, scale = quantise_weight(weight, 0, 8, 1e-3, bias)
    steps, bias_scale = quantise_bias(bias, np.asarray(1e-3, np.float32), scale)

    assert steps[0] * np.float64(bias_scale[0]) == pytest.approx(5.0, rel=1e-6)
    assert scale[1] == pytest.approx(1e-9 / 127)


@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (2, False), (6, False), (1, True)])
def test_the_mean_shift_is_what_rounded_weights_add_to_a_constant_input(groups: int, transposed: bool) -> None:
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(12, 6 // groups, 3, 3)).astype(np.float32)
    mean = draw.uniform(1, 4, 6)
    integers, scale = quantise_weight(weight, 0, 4)
    image = torch.from_numpy(mean).reshape(1, 6, 1, 1).expand(1, 6, 3, 3)
    stored = torch.from_numpy(integers * scale.astype(np.float64).reshape(-1, 1, 1, 1))
    exact, rounded = (
        torch.nn.functional.conv2d(image, weights, groups=groups).flatten()
        for weights in (torch.from_numpy(weight).double(), stored)
    )

    if transposed:  # a linear layer whose weights stand the other way round, over the same numbers
        flat, steps = weight.reshape(12, -1).T, integers.reshape(12, -1).T
        found = mean_shift(np.ascontiguousarray(flat), np.ascontiguousarray(steps), scale, 1, mean.repeat(9))
    else:
        found = mean_shift(weight, integers, scale, 0, mean)

    assert np.abs(found).max() > 0.1
    np.testing.assert_allclose(found, (rounded - exact).numpy(), rtol=1e-6, atol=1e-6)
