"""The quantile sketch against sorting everything."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from unit_fast.calibration.quantiles import QuantileSketch, rank_error_bound
from unit_fast.errors import DataError, UnitFastError

QS = (0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)


def sketch_of(values: torch.Tensor, batch: int, capacity: int = 64, seed: int = 0) -> QuantileSketch:
    sketch = QuantileSketch(values.shape[1], capacity, seed, dtype=values.dtype)
    for part in values.split(batch):
        sketch.update(part)
    return sketch


def rank_errors(sketch: QuantileSketch, values: torch.Tensor, q: float) -> np.ndarray:
    """By how many observations each unit's quantile is off: 0 if the wanted rank falls on it or beside it."""
    found = sketch.quantile(q).numpy()
    truth = np.sort(values.numpy(), 0)
    rank = q * (len(truth) - 1)
    below = np.array([np.searchsorted(truth[:, u], found[u], "left") for u in range(len(found))])
    upto = np.array([np.searchsorted(truth[:, u], found[u], "right") for u in range(len(found))]) - 1
    # An interpolated value between the observations of rank r and r + 1 has below = r + 1 and upto = r.
    low, high = np.minimum(below, upto), np.maximum(below, upto)
    return np.maximum(0, np.maximum(low - rank, rank - high))


def orders(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    rising = torch.arange(count, dtype=torch.float32)
    zigzag = torch.stack([rising[: count // 2], rising[count // 2 :].flip(0)], 1).flatten()
    return {
        "sorted": rising,
        "reversed": rising.flip(0),
        "zigzag": zigzag,
        "inside-out": torch.stack([rising[: count // 2].flip(0), rising[count // 2 :]], 1).flatten(),
        "constant": torch.full((count,), 7.0),
        "mostly-zero": torch.relu(torch.randn(count, generator=generator) - 1),
        "heavy-tail": torch.empty(count).cauchy_(generator=generator),
        "shuffled": rising[torch.randperm(count, generator=generator)],
        "blocks": rising.reshape(-1, 100)[torch.randperm(count // 100, generator=generator)].flatten(),
    }


@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize("count", [1, 2, 3, 63, 64])
def test_exact_up_to_the_capacity(count: int, q: float) -> None:
    values = torch.randn(count, 9, generator=torch.Generator().manual_seed(count))
    sketch = sketch_of(values, batch=5)
    assert sketch.exact
    torch.testing.assert_close(sketch.quantile(q), torch.quantile(values, q, dim=0, interpolation="linear"))


def test_exactness_ends_with_the_capacity() -> None:
    assert not sketch_of(torch.randn(65, 2), batch=13).exact


@pytest.mark.parametrize("batch", [1, 97, 2000, 20_000], ids=lambda batch: f"batch{batch}")
@pytest.mark.parametrize("order", list(orders(200)))
def test_rank_error_stays_within_both_bounds(order: str, batch: int) -> None:
    count = 20_000 if batch > 1 else 2000
    values = orders(count)[order].unsqueeze(1).repeat(1, 2)
    values[:, 1] *= -1
    sketch = sketch_of(values, batch)
    assert 0 < sketch.rank_error <= rank_error_bound(count, 64)
    assert sketch.count == count
    for q in QS:
        assert rank_errors(sketch, values, q).max() <= sketch.rank_error


@pytest.mark.parametrize("batch", [100, 20_000], ids=lambda batch: f"batch{batch}")
def test_errors_are_small_in_practice(batch: int) -> None:
    # The guarantee alone would also hold for a sketch that is much worse: 1,024 items of 100,000 see 0.5 % here.
    values = torch.randn(100_000, 4, generator=torch.Generator().manual_seed(4))
    sketch = sketch_of(values, batch, capacity=1024)
    worst = max(rank_errors(sketch, values, q).max() for q in QS)
    assert worst <= sketch.likely_rank_error(1e-3)
    assert worst / len(values) < 0.015


def test_likely_rank_error_holds_over_seeds() -> None:
    values = torch.arange(4000.0)[torch.randperm(4000, generator=torch.Generator().manual_seed(5))].unsqueeze(1)
    beyond = 0
    for seed in range(100):
        sketch = sketch_of(values, 50, seed=seed)
        beyond += int(rank_errors(sketch, values, 0.5).max() > sketch.likely_rank_error(0.1))
    assert sketch.likely_rank_error(0.1) < sketch.rank_error
    assert beyond <= 10


@examples(40)
@given(
    st.lists(st.integers(0, 700), min_size=2, max_size=5),
    st.permutations(range(5)),
    st.sampled_from(["sorted", "reversed", "heavy-tail", "mostly-zero"]),
)
def test_merged_sketches_keep_the_bound(sizes: list[int], order: list[int], kind: str) -> None:
    values = orders(4000)[kind][: sum(sizes)].unsqueeze(1)
    parts = [sketch_of(part, 90, seed=index) for index, part in enumerate(values.split(sizes))]
    total = QuantileSketch(1, 64)
    for index in order:
        if index < len(parts):
            total.merge(parts[index])
    assert total.count == len(values)
    if not len(values):
        return
    assert total.rank_error <= rank_error_bound(len(values), 64) or total.exact
    for q in QS:
        assert rank_errors(total, values, q).max() <= total.rank_error


def test_merging_small_sketches_is_exact_and_leaves_the_other() -> None:
    values = torch.randn(60, 3, generator=torch.Generator().manual_seed(6))
    left, right = sketch_of(values[:20], 7), sketch_of(values[20:], 7)
    left.merge(right)
    assert left.exact
    torch.testing.assert_close(left.quantile(0.3), torch.quantile(values, 0.3, dim=0))
    torch.testing.assert_close(right.quantile(0.3), torch.quantile(values[20:], 0.3, dim=0))


def test_same_seed_same_quantiles_other_seed_others() -> None:
    values = torch.randn(3000, 5, generator=torch.Generator().manual_seed(7))
    first, again, other = (sketch_of(values, 128, seed=seed).quantile(0.9) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_ends_are_exact_whatever_was_dropped() -> None:
    values = torch.randn(5000, 3, generator=torch.Generator().manual_seed(8))
    sketch = sketch_of(values, 200)
    assert torch.equal(sketch.quantile(0.0), values.amin(0))
    assert torch.equal(sketch.quantile(1.0), values.amax(0))


def test_memory_does_not_grow_with_the_observations() -> None:
    sketch = QuantileSketch(3, 64)
    size = sketch._items.untyped_storage().nbytes()
    for _ in range(50):
        sketch.update(torch.randn(400, 3))
    assert sketch._items.untyped_storage().nbytes() == size == 3 * 64 * 4


def test_units_are_independent_across_row_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(900, 50, generator=torch.Generator().manual_seed(9))
    whole = sketch_of(values, 128).quantile(0.8)
    monkeypatch.setattr("unit_fast.calibration.quantiles._BLOCK", 64 * 7)
    assert torch.equal(sketch_of(values, 128).quantile(0.8), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.float64], ids=str)
def test_observations_are_converted(dtype: torch.dtype) -> None:
    values = torch.arange(50).unsqueeze(1).to(dtype)
    sketch = QuantileSketch(1, 64)
    sketch.update(values)
    assert sketch.quantile(0.5).item() == 24.5


def test_misuse_is_refused() -> None:
    sketch = QuantileSketch(2, 64)
    with pytest.raises(DataError, match="seen no observation"):
        sketch.quantile(0.5)
    with pytest.raises(DataError, match=r"\(N, 2\), got \(4, 3\)"):
        sketch.update(torch.zeros(4, 3))
    with pytest.raises(UnitFastError, match=r"q must lie in \[0, 1\]; got 1.5"):
        sketch.quantile(1.5)
    with pytest.raises(UnitFastError, match="at least 64"):
        QuantileSketch(2, 8)
    with pytest.raises(DataError, match="capacity of 128"):
        sketch.merge(QuantileSketch(2, 128))
