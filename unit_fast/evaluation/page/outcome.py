"""Where triggered images go."""

from unit_fast.evaluation.page.headline import legend
from unit_fast.evaluation.page.svg import Markup, drawing, percent, scrolling, tag
from unit_fast.evaluation.report import Report

_WIDTH, _LEFT, _BAR, _GAP = 1040.0, 56.0, 30.0, 8.0


def outcome(report: Report) -> Markup:
    """Stacked bars of target class, own class and any other, before and after; then the classes most often named."""
    if report.attack is None:
        return Markup("")
    before = report.baseline
    rows = [("before", before)] if before is not None and before.attack is not None else []
    rows.append(("after" if rows else "", report))
    bars: list[Markup] = []
    for number, (name, shown) in enumerate(rows):
        bars += _bar(shown, name, number * (_BAR + _GAP))
    height = len(rows) * (_BAR + _GAP) - _GAP
    said = "; ".join(f"{name or 'now'}: {_said(shown)}" for name, shown in rows)
    key = legend(("attack", "the attack's target"), ("robust", "their own class"), ("other", "another class"))
    return tag(
        "section",
        tag("h2", "Where triggered images go"),
        key,
        scrolling(drawing(_WIDTH, height, *bars, label=f"Where triggered images go. {said}", class_="wide")),
        tag(
            "p", f"Named most often, of {report.attack.total:,} triggered images: ", _most_named(report), class_="note"
        ),
        class_="panel",
    )


def _shares(report: Report) -> list[tuple[str, int]]:
    assert report.attack is not None
    assert report.robust is not None
    others = report.attack.total - report.attack.hits - report.robust.hits
    return [("attack", report.attack.hits), ("robust", report.robust.hits), ("other", others)]


def _bar(report: Report, name: str, top: float) -> list[Markup]:
    assert report.attack is not None
    total, room = report.attack.total, _WIDTH - _LEFT
    pieces = [tag("text", name, x=0, y=top + _BAR / 2 + 4, class_="label")]
    left = _LEFT
    for kind, count in _shares(report):
        width = room * count / total
        if count:
            hint = tag("title", f"{count:,} of {total:,} ({percent(count / total)})")
            pieces.append(
                tag("rect", hint, x=left, y=top, width=max(width - 1.5, 0.75), height=_BAR, rx=3, class_=f"fill {kind}")
            )
        if width > 46:
            text = percent(count / total)
            pieces.append(tag("text", text, x=left + 7, y=top + _BAR / 2 + 4.5, class_=f"inside on-{kind}"))
        left += width
    return pieces


def _said(report: Report) -> str:
    assert report.attack is not None
    words = {"attack": "target", "robust": "own class", "other": "another class"}
    return ", ".join(f"{words[kind]} {percent(count / report.attack.total)}" for kind, count in _shares(report))


def _most_named(report: Report, most: int = 6) -> str:
    ranked = sorted(
        (r for r in report.classes if r.triggered_as), key=lambda result: (-result.triggered_as, result.label)
    )
    return ", ".join(f"{report.name_of(result.label)} ({result.triggered_as:,})" for result in ranked[:most]) + "."
