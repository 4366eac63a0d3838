"""The numbers to read first."""

from unit_fast.evaluation.metrics import Rate
from unit_fast.evaluation.page.svg import Markup, drawing, join, percent, rate_text, tag
from unit_fast.evaluation.report import Report

_WIDTH = 240.0
_PAD = 7.0


def sentence(report: Report) -> str:
    """What happened, in one sentence."""
    before = report.baseline
    accuracy = f"benign accuracy is {percent(report.benign.value)}"
    if before is not None:
        lost = 100 * (before.benign.value - report.benign.value)
        change = (
            "did not change" if abs(lost) < 0.005 else f"{'fell' if lost > 0 else 'rose'} by {_points(lost)} points"
        )
        accuracy = f"benign accuracy {change}, to {percent(report.benign.value)}"
    if report.attack is None:
        return f"{accuracy[0].upper()}{accuracy[1:]}."
    attack = f"The trigger sends {percent(report.attack.value)} of the images to its target"
    if before is not None and before.attack is not None:
        attack += f"; on the undefended model it was {percent(before.attack.value)}"
    return f"{attack}. {accuracy[0].upper()}{accuracy[1:]}."


def headline(report: Report) -> Markup:
    """One card a rate, before and after, with intervals."""
    before = report.baseline
    rates = (
        (
            "Benign accuracy",
            "BA",
            report.benign,
            before.benign if before else None,
            1,
            "clean images given their class",
        ),
        (
            "Attack success",
            "ASR",
            report.attack,
            before.attack if before else None,
            -1,
            "triggered images sent to the target",
        ),
        (
            "Robust accuracy",
            "RA",
            report.robust,
            before.robust if before else None,
            1,
            "triggered images still given their class",
        ),
    )
    cards = [
        _card(name, short, rate, rate_before, direction, meaning, report.confidence)
        for name, short, rate, rate_before, direction, meaning in rates
        if rate is not None
    ]
    if report.defence_effectiveness is not None:
        cards.append(_rating(report.defence_effectiveness))
    return tag("div", *cards, class_="cards")


def _card(
    name: str, short: str, rate: Rate, before: Rate | None, direction: int, meaning: str, confidence: float
) -> Markup:
    colour = {"BA": "clean", "ASR": "attack", "RA": "robust"}[short]
    number = tag("span", percent(rate.value), class_="number")
    pieces = [tag("h3", name, " ", tag("abbr", short)), tag("p", number, class_="value")]
    if before is not None:
        pieces.append(tag("p", f"from {percent(before.value)}", _change(rate, before, direction), class_="from"))
    pieces.append(_scale(rate, before, colour, f"{name}: {rate_text(rate, confidence)}", confidence))
    low, high = rate.interval(confidence)
    pieces.append(tag("p", f"{confidence:.0%} interval {percent(low)} to {percent(high)}", class_="note"))
    pieces.append(tag("p", f"{meaning}; {'higher' if direction > 0 else 'lower'} is better", class_="note"))
    return tag("section", *pieces, class_=f"card {colour}")


def _change(rate: Rate, before: Rate, direction: int) -> Markup:
    points = 100 * (rate.value - before.value)
    if abs(points) < 0.005:
        return tag("span", "= unchanged", class_="change")
    arrow = "▲" if points > 0 else "▼"
    return tag(
        "span", f"{arrow} {_points(points)} points", class_="change good" if points * direction > 0 else "change bad"
    )


def _points(points: float) -> str:
    return f"{abs(points):.1f}" if abs(points) >= 0.05 else f"{abs(points):.2f}"


def _scale(rate: Rate, before: Rate | None, colour: str, label: str, confidence: float) -> Markup:
    low, high = (_x(end) for end in rate.interval(confidence))
    here = _x(rate.value)
    pieces = [tag("line", x1=_x(0), x2=_x(1), y1=14, y2=14, class_="axis")]
    pieces += [tag("line", x1=_x(t), x2=_x(t), y1=10, y2=18, class_="axis") for t in (0, 0.25, 0.5, 0.75, 1)]
    if before is not None:
        there = _x(before.value)
        pieces.append(tag("line", x1=there, x2=here, y1=14, y2=14, class_=f"way {colour}"))
        pieces.append(
            tag(
                "circle",
                tag("title", f"before: {percent(before.value)}"),
                cx=there,
                cy=14,
                r=5,
                class_=f"ring {colour}",
            )
        )
    pieces.append(tag("rect", x=low, y=9, width=max(high - low, 1.0), height=10, rx=2, class_=f"interval {colour}"))
    pieces.append(tag("circle", tag("title", f"{percent(rate.value)}"), cx=here, cy=14, r=5, class_=f"dot {colour}"))
    pieces += [tag("text", text, x=_x(at), y=32, class_=f"tick {anchor}") for text, at, anchor in _ENDS]
    return drawing(_WIDTH, 36, *pieces, label=label)


_ENDS = (("0", 0.0, "start"), ("50", 0.5, "middle"), ("100 %", 1.0, "end"))


def _rating(value: float) -> Markup:
    here = _x(value)
    pieces = [tag("line", x1=_x(0), x2=_x(1), y1=14, y2=14, class_="axis")]
    pieces += [tag("line", x1=_x(t), x2=_x(t), y1=10, y2=18, class_="axis") for t in (0, 0.25, 0.5, 0.75, 1)]
    pieces.append(tag("line", x1=_x(0.5), x2=here, y1=14, y2=14, class_="way rating"))
    pieces.append(tag("circle", cx=here, cy=14, r=5, class_="dot rating"))
    for text, at, anchor in (("0", 0.0, "start"), ("0.5", 0.5, "middle"), ("1", 1.0, "end")):
        pieces.append(tag("text", text, x=_x(at), y=32, class_=f"tick {anchor}"))
    return tag(
        "section",
        tag("h3", "Defence effectiveness ", tag("abbr", "DER")),
        tag("p", tag("span", f"{value:.3f}", class_="number"), class_="value"),
        tag("p", "0.5 is no effect, 1 perfect", class_="from"),
        drawing(_WIDTH, 36, *pieces, label=f"Defence effectiveness rating {value:.3f}"),
        tag("p", "what the attack lost, less what accuracy was paid for it", class_="note"),
        tag("p", "(max(0, ΔASR) − max(0, ΔBA) + 1) / 2", class_="note"),
        class_="card rating",
    )


def _x(share: float) -> float:
    return _PAD + share * (_WIDTH - 2 * _PAD)


def legend(*entries: tuple[str, str]) -> Markup:
    """Colour keys: (class, text) each."""
    return tag(
        "p", *(tag("span", tag("i", class_=f"key {kind}"), join(text)) for kind, text in entries), class_="legend"
    )
