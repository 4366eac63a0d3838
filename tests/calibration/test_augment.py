"""augment(): shifted by little, mixed with less than half of another sample, and nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from unit_fast.calibration.augment import augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@examples(60)
@given(
    count=st.integers(1, 5),
    shape=st.sampled_from([(3,), (4, 6), (3, 8, 8), (1, 32, 20), (2, 3, 4, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_shape_dtype_and_range_stay(count, shape, dtype, seed):
    x = torch.rand(count, *shape, generator=generator(seed)).to(dtype)
    y = augment(x, generator(seed))
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert y.min() >= x.min()
    assert y.max() <= x.max()


def test_the_same_generator_gives_the_same_samples():
    x = torch.rand(6, 3, 32, 32)
    assert torch.equal(augment(x, generator(1)), augment(x, generator(1)))
    assert not torch.equal(augment(x, generator(1)), augment(x, generator(2)))


@pytest.mark.parametrize("seed", range(8))
def test_every_sample_keeps_more_than_half_of_itself(seed):
    # Sample i is the i-th unit vector, so that its entries are the shares of each sample.
    shares = augment(torch.eye(7), generator(seed))
    assert torch.allclose(shares.sum(1), torch.ones(7))
    assert bool((shares.diagonal() >= 0.5).all())
    assert int((shares > 0).sum(1).max()) <= 2
    assert bool((shares.diagonal() < 1).any())


def test_images_move_by_at_most_a_sixteenth_of_their_side():
    # One image alone is mixed with itself, so only the shift is left: a single lit pixel shows it.
    seen = set()
    for seed in range(200):
        x = torch.zeros(1, 1, 32, 16)
        x[0, 0, 10, 8] = 1.0
        lit = augment(x, generator(seed))[0, 0].nonzero()
        assert len(lit) == 1
        seen.add((int(lit[0, 0]) - 10, int(lit[0, 1]) - 8))
    assert seen == {(row, column) for row in range(-2, 3) for column in range(-1, 2)}


def test_edges_are_repeated():
    x = torch.full((1, 1, 32, 32), 0.7)
    assert torch.allclose(augment(x, generator(3)), x)


def test_integers_stay_and_several_inputs_share_their_partners():
    ids = torch.arange(5)
    a, b = augment((torch.eye(5), 2 * torch.eye(5)), generator(4))
    mixed = augment({"x": torch.eye(5), "ids": ids}, generator(4))
    assert torch.allclose(b, 2 * a)
    assert torch.equal(mixed["ids"], ids)
    assert torch.equal(mixed["x"], a)
