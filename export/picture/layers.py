"""Where the boxes go: a layered drawing (Sugiyama, Tagawa and Toda, 1981), folded into columns.

A box lies a layer below the last one it reads. A line to a box further down passes a waypoint in every layer between,
and lines from one box share theirs. Within its layer, everything is put in order by the mean place of what it is joined
to, then moved as close to that as widths allow. Columns begin where the fewest lines are cut.
"""

import itertools
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median

SWEEPS = 12
# How much a line wants to be straight: between boxes, between a box and a waypoint, between waypoints.
_PULL = (4.0, 1.0, 8.0)

Point = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    """Sizes in pixels.

    Attributes:
        width: of a box.
        height: of a box.
        gap: between neighbours in a layer.
        step: from a layer to the next.
        gutter: between columns.
        turn: between two lines that go from one column to the next.
        aspect: width over height that the whole should come near.
    """

    width: float = 172
    height: float = 36
    gap: float = 16
    step: float = 54
    gutter: float = 64
    turn: float = 7
    aspect: float = 1.5


@dataclass(frozen=True)
class Drawing:
    """Where everything goes; (0, 0) is the upper left corner.

    Attributes:
        places: centre of each box.
        curves: lines from (x, y) to (x, y) a layer below, or straight through a layer.
        turns: lines from one column to the next, by the corners they pass.
        width: of the whole.
        height: of the whole.
    """

    places: list[Point]
    curves: list[tuple[Point, Point]]
    turns: list[list[Point]]
    width: float
    height: float


@dataclass
class _Item:
    """A box or a waypoint."""

    layer: int
    width: float
    above: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)
    x: float = 0.0


def arrange(sources: Sequence[Sequence[int]], metrics: Metrics | None = None) -> Drawing:
    """Place boxes that read each other.

    Args:
        sources: for each box the boxes it reads, all of them with smaller numbers.
        metrics: sizes.
    """
    metrics = metrics or Metrics()
    if not sources:
        return Drawing([], [], [], 0.0, 0.0)
    items = _with_waypoints(sources, metrics)
    rows: list[list[int]] = [[] for _ in range(max(item.layer for item in items) + 1)]
    for number, item in enumerate(items):
        rows[item.layer].append(number)
    _order(rows, items)
    _place(rows, items, metrics.gap)
    return _fold(rows, items, len(sources), metrics)


def _with_waypoints(sources: Sequence[Sequence[int]], metrics: Metrics) -> list[_Item]:
    layers = [0] * len(sources)
    readers: list[list[int]] = [[] for _ in sources]
    for box, read in enumerate(sources):
        layers[box] = 1 + max((layers[source] for source in read), default=-1)
        for source in read:
            readers[source].append(box)
    for box, read in enumerate(sources):
        if not read and readers[box]:  # an input: close to where it is read
            layers[box] = min(layers[reader] for reader in readers[box]) - 1
    items = [_Item(layer, metrics.width) for layer in layers]
    for box, reading in enumerate(readers):
        chain = [box]
        for reader in sorted(reading, key=lambda reader: layers[reader]):
            while layers[box] + len(chain) < layers[reader]:
                items.append(_Item(layers[box] + len(chain), 0.0))
                _join(items, chain[-1], len(items) - 1)
                chain.append(len(items) - 1)
            _join(items, chain[layers[reader] - layers[box] - 1], reader)
    return items


def _join(items: list[_Item], upper: int, lower: int) -> None:
    items[upper].below.append(lower)
    items[lower].above.append(upper)


def _order(rows: list[list[int]], items: list[_Item]) -> None:
    """Put every row in the order with the fewest crossings that was come across."""
    best, fewest = [list(row) for row in rows], _crossings(rows, items)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        downwards = sweep % 2 == 0
        position: dict[int, float] = {item: place for row in rows for place, item in enumerate(row)}
        for row in rows if downwards else reversed(rows):
            means = {}
            for item in row:
                joined = items[item].above if downwards else items[item].below
                means[item] = sum(position[other] for other in joined) / len(joined) if joined else position[item]
            row.sort(key=lambda item: means[item])
            position.update((item, place) for place, item in enumerate(row))
        crossings = _crossings(rows, items)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    rows[:] = best


def _crossings(rows: list[list[int]], items: list[_Item]) -> int:
    count = 0
    for upper, lower in itertools.pairwise(rows):
        position = {item: place for place, item in enumerate(lower)}
        seen: list[int] = []
        for item in upper:
            ends = sorted(position[other] for other in items[item].below)
            count += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return count


def _place(rows: list[list[int]], items: list[_Item], gap: float) -> None:
    for row in rows:
        _settle(row, items, [0.0] * len(row), [1.0] * len(row), gap)
    for sweep in range(2 * SWEEPS):
        downwards = sweep % 2 == 0
        for row in rows if downwards else reversed(rows):
            wanted, pulls = [], []
            for number in row:
                item = items[number]
                joined = [*item.above, *item.below] if sweep >= SWEEPS else item.above if downwards else item.below
                pull = [_PULL[(item.width == 0) + (items[other].width == 0)] for other in joined]
                total = sum(pull)
                wanted.append(
                    sum(p * items[other].x for p, other in zip(pull, joined, strict=True)) / total if total else item.x
                )
                pulls.append(total or 1.0)
            _settle(row, items, wanted, pulls, gap)
    _straighten(rows, items, gap)


def _straighten(rows: list[list[int]], items: list[_Item], gap: float) -> None:
    """Bring items that follow each other without a fork below one another, where their neighbours leave room."""
    limits: dict[int, tuple[int | None, int | None]] = {}  # neighbours by item, in its row
    for row in rows:
        limits |= {item: (left, right) for left, item, right in zip([None, *row], row, [*row[1:], None], strict=False)}
    chains: list[list[int]] = []
    chain_of: dict[int, list[int]] = {}
    for row in rows:
        for item in row:
            before = _only(items, item, items[item].above)
            if before is not None and _only(items, before, items[before].below) == item:
                chain_of[item] = chain_of[before]
                chain_of[item].append(item)
            else:
                chain_of[item] = [item]
                chains.append(chain_of[item])
    for _ in range(3):
        for chain in sorted(chains, key=len, reverse=True):
            low, high = -inf, inf
            for item in chain:
                left, right = limits[item]
                if left is not None:
                    low = max(low, items[left].x + (items[left].width + items[item].width) / 2 + gap)
                if right is not None:
                    high = min(high, items[right].x - (items[right].width + items[item].width) / 2 - gap)
            if low <= high:
                x = min(max(median(items[item].x for item in chain), low), high)
                for item in chain:
                    items[item].x = x


def _only(items: list[_Item], item: int, joined: list[int]) -> int | None:
    """Of ``joined``, the one that is a box if ``item`` is one, else the waypoint; None where there are several."""
    alike = [other for other in joined if bool(items[other].width) == bool(items[item].width)]
    return alike[0] if len(alike) == 1 else None


def _settle(row: list[int], items: list[_Item], wanted: list[float], pulls: list[float], gap: float) -> None:
    """Move a row as close to where it wants to be as its order and widths allow: least squares by pooling."""
    offsets, edge = [], 0.0
    for number in row:
        offsets.append(edge + items[number].width / 2)
        edge += items[number].width + gap
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for want, offset, weight in zip(wanted, offsets, pulls, strict=True):
        pool = (want - offset, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, mass, members = pools.pop()
            mass_of_both = mass + pool[1]
            pool = ((mean * mass + pool[0] * pool[1]) / mass_of_both, mass_of_both, members + pool[2])
        pools.append(pool)
    starts = [mean for mean, _, members in pools for _ in range(members)]
    for number, start, offset in zip(row, starts, offsets, strict=True):
        items[number].x = start + offset


def _fold(rows: list[list[int]], items: list[_Item], boxes: int, metrics: Metrics) -> Drawing:
    """Cut the rows into columns, and put those side by side."""
    cut = [sum(len(items[item].below) for item in row) for row in rows]  # lines that leave each row
    columns = _columns(rows, items, cut, metrics)
    head = 10 + metrics.turn * max((cut[column.stop - 1] for column in columns[:-1]), default=0)
    left, height = 0.0, 0.0
    centres: dict[int, Point] = {}
    edges = []  # of each column: right, bottom
    for column in columns:
        members = [item for row in rows[column.start : column.stop] for item in row]
        shift = left - min(items[item].x - items[item].width / 2 for item in members)
        for layer in column:
            y = head + metrics.height / 2 + (layer - column.start) * metrics.step
            centres |= {item: (items[item].x + shift, y) for item in rows[layer]}
        right = max(items[item].x + items[item].width / 2 for item in members) + shift
        bottom = head + (len(column) - 1) * metrics.step + metrics.height
        edges.append((right, bottom))
        left, height = right + metrics.gutter, max(height, bottom)
    curves: list[tuple[Point, Point]] = []
    turns: list[list[Point]] = []
    half = metrics.height / 2
    for number, (x, y) in centres.items():
        if items[number].width == 0:
            curves.append(((x, y - half), (x, y + half)))
    for index, column in enumerate(columns):
        for layer in column:
            links = [(item, below) for item in rows[layer] for below in items[item].below]
            for rank, (item, below) in enumerate(sorted(links, key=lambda link: centres[link[0]][0])):
                (x, y), (to_x, to_y) = centres[item], centres[below]
                start, end = (x, y + half), (to_x, to_y - half)
                if layer < column.stop - 1:
                    curves.append((start, end))
                    continue
                away = 6 + metrics.turn * rank
                right, bottom = edges[index]
                turns.append(
                    [
                        start,
                        (x, bottom + away),
                        (right + 6 + away, bottom + away),
                        (right + 6 + away, head - away),
                        (to_x, head - away),
                        end,
                    ]
                )
    return Drawing([centres[box] for box in range(boxes)], curves, turns, left - metrics.gutter, height + head)


def _columns(rows: list[list[int]], items: list[_Item], cut: list[int], metrics: Metrics) -> list[range]:
    width = max(item.x + item.width / 2 for item in items) - min(item.x - item.width / 2 for item in items)
    wanted = max(1, round((metrics.aspect * len(rows) * metrics.step / (width + metrics.gutter)) ** 0.5))
    length = len(rows) / wanted
    starts = [0]
    for number in range(1, wanted):
        ideal = round(number * length)
        window = range(max(starts[-1] + 1, round(ideal - length / 4)), min(len(rows), round(ideal + length / 4) + 1))
        if window:
            starts.append(min(window, key=lambda start: (cut[start - 1], abs(start - ideal))))
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)]
