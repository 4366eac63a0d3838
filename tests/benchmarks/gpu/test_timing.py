"""What is said about a timing: how many calls it stands for, its spread, and the state of L2."""

import time

import pytest
import torch

from benchmarks.gpu.timing import MOST_SETS, Timing, sets_for, time_as_called, time_calls

MB = 2**20


@pytest.mark.parametrize(
    ("footprint", "wanted", "expected"),
    [
        pytest.param(10 * MB, "cold", (12, "cold"), id="several_sets_exceed_the_cache_twice"),
        pytest.param(500 * MB, "cold", (1, "cold"), id="one_large_set_does"),
        pytest.param(MB, "cold", (MOST_SETS, "warm"), id="too_small_to_be_cold"),
        pytest.param(10 * MB, "warm", (1, "warm"), id="fits"),
        pytest.param(100 * MB, "warm", (1, "cold"), id="does_not_fit"),
    ],
)
def test_state_of_l2_follows_from_the_bytes(footprint, wanted, expected):
    assert sets_for(footprint, 60 * MB, wanted) == expected


def test_spread_is_that_of_one_call():
    timing = Timing.of([10.0, 20.0, 30.0, 40.0, 50.0, 60.0], calls=10)
    assert (timing.median, timing.p20, timing.p80) == pytest.approx((3.5, 2.0, 5.0))
    assert (timing.samples, timing.calls_a_sample) == (6, 10)


def test_times_a_call_and_not_the_round():
    def call() -> torch.Tensor:
        time.sleep(0.01)
        return torch.zeros(())

    timing = time_calls([call] * 5, "cpu")
    assert 10_000 <= timing.median < 20_000
    assert timing.calls_a_sample == 5


def test_calls_are_timed_as_they_are_made():
    made = []

    def call() -> None:
        made.append(time.perf_counter())
        time.sleep(0.004)

    timing = time_as_called(call, "cpu")
    assert 4_000 <= timing.median < 12_000
    assert 2 <= timing.calls_a_sample <= 5
    assert len(made) == 3 + timing.samples * timing.calls_a_sample
