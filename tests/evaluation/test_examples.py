from collections import Counter

import pytest
import torch

from unit_fast.evaluation.examples import Example, ExampleDraw, picture


def drawn(size: int, stream: int, seed: int) -> tuple[int, ...]:
    draw = ExampleDraw(size, seed)
    for index in range(stream):
        place = draw.place()
        if place is not None:
            draw.put(place, (Example(index, 0, 1, 0, 1, b"", b""),))
    return tuple(example.index for example in draw.of_model(0))


def test_a_short_stream_is_kept_whole_and_in_order():
    assert drawn(5, 3, 0) == (0, 1, 2)
    assert drawn(0, 10, 0) == ()


def test_every_sample_has_the_same_chance():
    times = 4000
    counts = Counter(index for seed in range(times) for index in drawn(3, 12, seed))
    expected = times * 3 / 12
    # Chi-square with 11 degrees of freedom: 31.3 is passed by chance once in a thousand times; the seeds are fixed.
    assert sum((counts[index] - expected) ** 2 / expected for index in range(12)) < 31.3


def test_the_same_seed_draws_the_same():
    assert drawn(4, 100, 7) == drawn(4, 100, 7)
    assert drawn(4, 100, 7) != drawn(4, 100, 8)


@pytest.mark.parametrize("shape", [(10,), (2, 8, 8), (4, 8, 8)], ids=str)
def test_what_is_no_picture_has_none(shape):
    assert picture(torch.rand(shape)) is None


def test_plain_values_give_the_example_back():
    example = Example(3, 1, 2, 1, 2, b"\x89PNG", b"\x00\xff")
    assert Example.from_dict(example.to_dict()) == example
