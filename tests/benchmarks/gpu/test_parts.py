"""The parts of a run share its time: what one leaves is the later ones'."""

import pytest

from benchmarks.gpu.parts import PARTS, deadline

DEFAULT = [part for part in PARTS if part.by_default]


def test_a_whole_run_stays_below_nine_minutes_and_ends_with_the_profile():
    assert sum(part.seconds for part in DEFAULT) <= 540
    names = [part.name for part in DEFAULT]
    assert names == ["environment", "values", "tests", "layers", "dispatch", "models", "profile"]


def test_each_part_gets_its_share_and_what_others_left():
    now, spent = 100.0, []
    for place, part in enumerate(DEFAULT):
        ends = deadline(part, DEFAULT[place + 1 :], now, 100.0 + 540)
        spent.append(ends - now)
        now = ends if place else now + 5.0  # the first ends early
    assert now == pytest.approx(640.0)
    assert spent[0] == DEFAULT[0].seconds
    assert all(time > part.seconds for time, part in zip(spent[1:], DEFAULT[1:], strict=True))


def test_a_part_that_is_named_alone_has_all_the_time():
    assert deadline(PARTS[-1], [], 7.0, 547.0) == 547.0
