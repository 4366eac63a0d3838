import math

import pytest

from unit_fast.errors import DataError
from unit_fast.evaluation.metrics import Rate, defence_effectiveness


# Newcombe, "Two-sided confidence intervals for the single proportion", Stat. Med. 17, 1998, table I, method 3.
@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_those_published(hits, total, low, high):
    assert Rate(hits, total).interval() == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (3, 7), (50, 100), (999, 1000)])
@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.959963985), (0.99, 2.575829304)])
def test_interval_ends_solve_the_score_equation(hits, total, confidence, z):
    for end in Rate(hits, total).interval(confidence):
        if 0 < end < 1:
            assert abs(hits / total - end) == pytest.approx(z * math.sqrt(end * (1 - end) / total), rel=1e-6)


def test_an_interval_of_all_hits_ends_at_one_and_mirrors_that_of_none():
    low, high = Rate(7, 7).interval()
    assert high == 1.0
    assert low == pytest.approx(1 - Rate(0, 7).interval()[1])


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(hits, total):
    with pytest.raises(DataError, match=f"found {hits} of {total}"):
        Rate(hits, total)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_impossible_confidence_is_refused(confidence):
    with pytest.raises(DataError, match="between 0 and 1"):
        Rate(1, 2).interval(confidence)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param((0.9, 1.0), (0.9, 0.0), 1.0, id="perfect"),
        pytest.param((0.9, 0.8), (0.9, 0.8), 0.5, id="without effect"),
        pytest.param((0.9, 1.0), (0.8, 0.1), (0.9 - 0.1 + 1) / 2, id="some accuracy paid"),
        pytest.param((0.9, 0.5), (0.95, 0.7), 0.5, id="gained accuracy and a worse attack count for nothing"),
        pytest.param((1.0, 0.0), (0.0, 0.0), 0.0, id="ruined"),
    ],
)
def test_defence_effectiveness(before, after, expected):
    assert defence_effectiveness(before[0], after[0], before[1], after[1]) == pytest.approx(expected)
