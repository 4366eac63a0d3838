import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from unit_fast.export.picture.layers import Drawing, Metrics, arrange

METRICS = Metrics()
# A stem, a block with a skip, a block with a convolution beside, a head.
RESIDUAL: list[list[int]] = [[], [0], [1], [2], [3], [1, 4], [5], [5], [6], [8, 7], [9]]


def dense(layers: int) -> list[list[int]]:
    """Every box reads all before it."""
    return [list(range(box)) for box in range(layers)]


def chain(length: int) -> list[list[int]]:
    return [[box - 1] if box else [] for box in range(length)]


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    count = draw(st.integers(1, 25))
    return [draw(st.lists(st.integers(0, box - 1), max_size=3, unique=True)) if box else [] for box in range(count)]


def check(drawing: Drawing, sources: Sequence[Sequence[int]]) -> None:
    """No box lies on another or outside, and lines end where boxes begin."""
    half_width, half_height = METRICS.width / 2, METRICS.height / 2
    for (x, y), (other_x, other_y) in itertools.combinations(drawing.places, 2):
        assert abs(x - other_x) >= METRICS.width - 1e-6 or abs(y - other_y) >= METRICS.height
    for x, y in drawing.places:
        assert half_width - 1e-6 <= x <= drawing.width - half_width + 1e-6
        assert half_height <= y <= drawing.height - half_height
    lines = [*drawing.curves, *((turn[0], turn[-1]) for turn in drawing.turns)]
    below: dict[tuple[float, float], list[tuple[float, float]]] = {}
    for start, end in lines:
        below.setdefault(start, []).append(end)
    for box, read in enumerate(sources):
        x, y = drawing.places[box]
        for source in read:
            source_x, source_y = drawing.places[source]
            reached = [(source_x, source_y + half_height)]
            for point in reached:
                reached += below.get(point, [])
            assert (x, y - half_height) in reached, f"no line leads from {source} to {box}"


@examples(60)
@given(graphs())
def test_boxes_keep_apart_and_lines_lead_where_they_should(sources: list[list[int]]) -> None:
    check(arrange(sources), sources)


@pytest.mark.parametrize("sources", [RESIDUAL, dense(9), chain(80)], ids=["residual", "dense", "chain"])
def test_networks(sources: list[list[int]]) -> None:
    check(arrange(sources), sources)


def test_a_chain_is_straight() -> None:
    assert len({x for x, _ in arrange(chain(12), Metrics(aspect=0.01)).places}) == 1


def test_the_main_line_of_a_residual_block_is_straight() -> None:
    places = arrange(RESIDUAL[:6], Metrics(aspect=0.01)).places
    assert len({round(x, 3) for x, _ in places}) == 1


def test_lines_do_not_cross_where_they_need_not() -> None:
    # Two inputs, and two readers in the other order.
    crossed = [[], [], [1], [0]]
    (first, _), (second, _), (of_second, _), (of_first, _) = arrange(crossed).places
    assert (first < second) == (of_first < of_second)


def test_an_input_lies_next_to_where_it_is_read() -> None:
    places = arrange([[], [], [0], [2], [3, 1]], Metrics(aspect=0.01)).places
    assert places[1][1] == places[3][1]


def test_a_long_chain_is_folded_into_columns() -> None:
    drawing = arrange(chain(60))
    assert len(drawing.turns) == len({x for x, _ in drawing.places}) - 1 > 0
    assert 0.7 < drawing.width / drawing.height < 3


def test_columns_begin_where_few_lines_are_cut() -> None:
    # Twelve blocks, each with a skip: one line is cut above a block's last box, two anywhere else.
    sources: list[list[int]] = [[]]
    for _ in range(12):
        start = len(sources) - 1
        sources += [[start], [start + 1], [start + 2, start], [start + 3]]
    drawing = arrange(sources)
    columns = {x for x, _ in drawing.places}
    assert len(columns) > 1
    assert len(drawing.turns) == len(columns) - 1, "a skip was cut"


def test_nothing() -> None:
    assert arrange([]).places == []


def test_five_hundred_boxes_take_seconds() -> None:
    sources = [[], *([box - 1, *([box - 6] if box > 6 and box % 3 == 0 else [])] for box in range(1, 520))]
    started = time.process_time()
    drawing = arrange(sources)
    assert time.process_time() - started < 10
    check(drawing, sources)
