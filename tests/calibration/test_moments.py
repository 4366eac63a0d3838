"""Streaming moments against numpy in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.properties import examples
from unit_fast.calibration.moments import StreamingMoments
from unit_fast.errors import DataError

finite = st.floats(-1e6, 1e6, width=32)
rows = st.integers(2, 12).flatmap(lambda n: hnp.arrays(np.float32, (n, 3), elements=finite))


def seen(*batches: torch.Tensor) -> StreamingMoments:
    moments = StreamingMoments(batches[0].shape[1])
    for batch in batches:
        moments.update(batch)
    return moments


def assert_moments(moments: StreamingMoments, values: np.ndarray) -> None:
    truth = values.astype(np.float64)
    # Rounding of float64 over values of this size, not a share of a variance that may be zero.
    scale = max(1.0, float(np.abs(truth).max())) ** 2 * 1e-12
    assert moments.count == len(truth)
    np.testing.assert_allclose(moments.mean.numpy(), truth.mean(0), rtol=1e-12, atol=scale)
    np.testing.assert_allclose(moments.variance(0).numpy(), truth.var(0), rtol=1e-9, atol=scale)
    np.testing.assert_allclose(moments.variance().numpy(), truth.var(0, ddof=1), rtol=1e-9, atol=scale)
    np.testing.assert_array_equal(moments.minimum.numpy(), truth.min(0))
    np.testing.assert_array_equal(moments.maximum.numpy(), truth.max(0))


@examples(60)
@given(rows, st.lists(st.integers(0, 12), max_size=4))
def test_any_cut_into_batches_gives_the_moments_of_the_whole(values: np.ndarray, cuts: list[int]) -> None:
    edges = sorted({0, len(values), *(min(cut, len(values)) for cut in cuts)})
    batches = [torch.from_numpy(values[a:b]) for a, b in pairwise(edges)]
    assert_moments(seen(*batches), values)


@examples(60)
@given(rows, st.permutations(range(4)))
def test_merges_in_any_order_give_the_moments_of_the_whole(values: np.ndarray, order: list[int]) -> None:
    parts = [seen(torch.from_numpy(part)) for part in np.array_split(values, 4)]
    total = StreamingMoments(3)
    for index in order:
        total.merge(parts[index])
    assert_moments(total, values)


def test_merging_trees_and_chains_agree() -> None:
    parts = [torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) * n for n in (1, 2, 30, 400)]
    left, right = seen(*parts[:2]), seen(*parts[2:])
    left.merge(right)
    assert_moments(left, torch.cat(parts).numpy())
    assert right.count == 430  # what was merged stays as it was


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4, 1e6])
def test_variance_keeps_its_digits_far_from_zero(mean: float) -> None:
    values = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = (values + mean).float()
    moments = seen(*values.split(130))
    truth = values.numpy().astype(np.float64).var(0, ddof=1)
    error = np.abs(moments.variance().numpy() / truth - 1).max()
    assert error < 1e-9
    if mean >= 1e4:  # the case is hard: sums of squares in float32 fail it
        naive = ((values * values).mean(0) - values.mean(0) ** 2).numpy()
        assert np.abs(naive / truth - 1).max() > 0.1


@pytest.mark.parametrize("shape", [(300, 5000), (300_000, 1), (2, 70_000)], ids=["wide", "tall", "few"])
def test_batches_larger_than_a_block(shape: tuple[int, int]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 3
    assert_moments(seen(values), values.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64], ids=str)
def test_every_dtype_is_taken_at_its_values(dtype: torch.dtype) -> None:
    values = torch.arange(60).reshape(20, 3).to(dtype)
    assert_moments(seen(values), values.double().numpy())


def test_single_observation_has_no_corrected_variance() -> None:
    moments = seen(torch.tensor([[2.0, -3.0]]))
    assert moments.mean.tolist() == [2.0, -3.0]
    assert moments.variance(0).tolist() == [0.0, 0.0]
    with pytest.raises(DataError, match="at least 2 observations"):
        moments.variance()


def test_empty_batches_and_merges_change_nothing() -> None:
    values = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    moments = seen(values)
    moments.update(torch.empty(0, 3))
    moments.merge(StreamingMoments(3))
    assert_moments(moments, values.numpy())
    fresh = StreamingMoments(3)
    fresh.merge(moments)
    assert_moments(fresh, values.numpy())


def test_nothing_seen_has_no_moments() -> None:
    with pytest.raises(DataError, match="at least 1 observations"):
        StreamingMoments(3).mean.sum()


def test_other_numbers_of_units_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(N, 3\), got \(4, 2\)"):
        StreamingMoments(3).update(torch.zeros(4, 2))
    with pytest.raises(DataError, match="2 units"):
        StreamingMoments(3).merge(StreamingMoments(2))


def test_figures_are_copies() -> None:
    moments = seen(torch.ones(3, 2))
    moments.mean.zero_()
    assert moments.mean.tolist() == [1.0, 1.0]


def test_observations_are_left_as_they_are() -> None:
    values = torch.arange(12, dtype=torch.float64).reshape(6, 2)
    seen(values)
    assert torch.equal(values, torch.arange(12, dtype=torch.float64).reshape(6, 2))
