"""Histograms of activations, a panel a site."""

import math
from collections.abc import Sequence

from unit_fast.evaluation.histograms import SiteHistogram
from unit_fast.evaluation.page.headline import legend
from unit_fast.evaluation.page.svg import Markup, drawing, percent, tag

_WIDTH, _PLOT, _LEFT, _TITLE, _GAP, _AXIS = 350.0, 84.0, 30.0, 16.0, 8.0, 18.0
_STEP = _TITLE + _PLOT + _GAP
# A handful of activations among hundreds of millions is what a trigger may be seen by.
_DECADES = 10


def activations(histograms: Sequence[SiteHistogram]) -> Markup:
    """Per site, clean (filled) and triggered (line) activations with the bounds, before and after the clamp."""
    if not histograms:
        return Markup("")
    triggered = any(histogram.triggered is not None for histogram in histograms)
    bounded = any(histogram.bounds is not None for histogram in histograms)
    keys = [("clean", "clean")]
    keys += [("line-key attack", "triggered")] if triggered else []
    keys += [("band", "the site's bounds: all (bar on top), the middle 90 % (band), median (line)")] if bounded else []
    return tag(
        "section",
        tag("h2", "Activations"),
        legend(*keys),
        tag(
            "p",
            "Share of the activations in each bin, on a logarithmic scale. "
            "What a trigger drives past the bounds is cut there.",
            class_="note",
        ),
        tag("div", *(_panel(histogram) for histogram in histograms), class_="sites"),
        class_="panel",
    )


def _panel(histogram: SiteHistogram) -> Markup:
    plots = [("before the clamp", histogram.clean, histogram.triggered)]
    if histogram.clean_after is not None:
        plots.append(("after", histogram.clean_after, histogram.triggered_after))
    pieces: list[Markup] = []
    for number, (title, clean, triggered) in enumerate(plots):
        pieces += _plot(histogram, title, clean, triggered, number * _STEP, _floor(histogram))
    pieces += _value_axis(histogram, len(plots) * _STEP - _GAP)
    height = len(plots) * _STEP - _GAP + _AXIS
    notes = []
    if histogram.clean_clamped is not None:
        notes.append(f"clamped: {percent(histogram.clean_clamped)} of clean")
    if histogram.triggered_clamped is not None:
        notes.append(f"{percent(histogram.triggered_clamped)} of triggered")
    label = f"Activations of {histogram.name}. {', '.join(notes)}"
    note = [tag("p", ", ".join(notes), class_="note")] if notes else []
    return tag(
        "figure", tag("figcaption", tag("code", histogram.name)), drawing(_WIDTH, height, *pieces, label=label), *note
    )


def _plot(
    histogram: SiteHistogram,
    title: str,
    clean: tuple[int, ...],
    triggered: tuple[int, ...] | None,
    top: float,
    floor: int,
) -> list[Markup]:
    base = top + _TITLE + _PLOT
    pieces = [tag("text", title, x=_LEFT, y=top + 10, class_="tick start")]
    for decade, y in ((0, base - _PLOT), (floor, base)):
        pieces.append(tag("line", x1=_LEFT, x2=_WIDTH, y1=y, y2=y, class_="grid"))
        share = "1" if decade == 0 else f"10{_superscript(decade)}"
        pieces.append(tag("text", share, x=_LEFT - 4, y=y + 4, class_="tick end"))
    pieces += _band(histogram, base - _PLOT, base)
    pieces.append(tag("path", d=_outline(_shares(clean), floor, base, closed=True), class_="area clean"))
    if triggered is not None:
        pieces.append(tag("path", d=_outline(_shares(triggered), floor, base, closed=False), class_="curve attack"))
    return pieces


def _value_axis(histogram: SiteHistogram, base: float) -> list[Markup]:
    pieces: list[Markup] = []
    for value in round_ticks(histogram.edges[0], histogram.edges[-1]):
        x = _x(histogram, value)
        pieces.append(tag("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
        pieces.append(tag("text", f"{value:g}".replace("-", "−"), x=x, y=base + 15, class_="tick middle"))
    return pieces


def round_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers (1, 2 or 5 times a power of ten apart) between ``low`` and ``high``."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{number * step:.6g}") for number in range(first, last + 1)]


def _floor(histogram: SiteHistogram) -> int:
    """The decade below the smallest share there is, one scale for all plots of the site."""
    series = (histogram.clean, histogram.triggered, histogram.clean_after, histogram.triggered_after)
    smallest = min((share for counts in series for share in _shares(counts or ()) if share > 0), default=1.0)
    return min(max(math.ceil(math.log10(smallest)) - 1, -_DECADES), -1)


def _shares(counts: tuple[int, ...]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _band(histogram: SiteHistogram, top: float, base: float) -> list[Markup]:
    if histogram.bounds is None:
        return []
    lowest, low, median, high, highest = (_x(histogram, bound) for bound in histogram.bounds)
    values = ", ".join(f"{bound:.3g}" for bound in histogram.bounds)
    hint = tag("title", f"bounds: minimum, 5 %, median, 95 %, maximum = {values}")
    return [
        tag("rect", hint, x=low, y=top, width=max(high - low, 1.0), height=base - top, class_="band"),
        tag("line", x1=lowest, x2=highest, y1=top, y2=top, class_="bound"),
        tag("line", x1=median, x2=median, y1=top, y2=base, class_="bound"),
    ]


def _x(histogram: SiteHistogram, value: float) -> float:
    low, high = histogram.edges[0], histogram.edges[-1]
    return _LEFT + (_WIDTH - _LEFT) * min(max((value - low) / (high - low), 0.0), 1.0)


def _outline(shares: list[float], floor: int, base: float, *, closed: bool) -> str:
    """The bins' outline, each run of filled bins by itself; what is below the scale counts as empty."""
    width = (_WIDTH - _LEFT) / len(shares)
    path: list[str] = []
    drawing_run = False
    for place, share in enumerate(shares):
        rise = (math.log10(share) - floor) / -floor if share > 0 else 0.0
        if rise > 0:
            left, right = _LEFT + place * width, _LEFT + (place + 1) * width
            start = "" if drawing_run else f"M{left:.1f} {base:.1f}"
            path.append(f"{start}V{base - _PLOT * min(rise, 1.0):.1f}H{right:.1f}")
        elif drawing_run:
            path.append(f"V{base:.1f}" + ("Z" if closed else ""))
        drawing_run = rise > 0
    if drawing_run:
        path.append(f"V{base:.1f}" + ("Z" if closed else ""))
    return "".join(path)


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
