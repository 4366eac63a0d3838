"""The rates class by class."""

from unit_fast.evaluation.metrics import Rate
from unit_fast.evaluation.page.headline import legend
from unit_fast.evaluation.page.svg import Markup, drawing, percent, rate_text, scrolling, tag
from unit_fast.evaluation.report import ClassResult, Report

_ROW, _TOP, _NAME, _COLUMN, _PAD = 19.0, 26.0, 200.0, 280.0, 16.0
_MOST = 60
_COLUMNS = (
    ("benign", "clean", "Benign accuracy"),
    ("attack", "attack", "Attack success"),
    ("robust", "robust", "Robust accuracy"),
)


def class_chart(report: Report) -> Markup:
    """One row a class, one column a rate, before as a ring and after as a dot; then the numbers as a table.

    With more than 60 classes, the 60 that fare worst are drawn.
    """
    columns = _COLUMNS if report.attack is not None else _COLUMNS[:1]
    shown = [result for result in report.classes if result.benign is not None or result.attack is not None]
    total = len(shown)
    if total > _MOST:
        worst = sorted(shown, key=lambda result: (_worth(result), result.label))[:_MOST]
        shown = sorted(worst, key=lambda result: result.label)
    old = {result.label: result for result in report.baseline.classes} if report.baseline is not None else {}
    pieces: list[Markup] = []
    height = _TOP + len(shown) * _ROW + 4
    for number, (_, _, title) in enumerate(columns):
        pieces += _grid(number, title, height)
    for place, result in enumerate(shown):
        pieces += _row(report, result, old.get(result.label), columns, _TOP + (place + 0.5) * _ROW)
    some = f" The {_MOST} of {total} classes that fare worst." if total > _MOST else ""
    return tag(
        "section",
        tag("h2", "Class by class"),
        legend(("ring-key", "before"), ("dot-key", "after")) if old else Markup(""),
        scrolling(
            drawing(
                _NAME + 3 * _COLUMN,
                height,
                *pieces,
                label=f"Rates of {len(shown)} classes; the table below has the numbers.{some}",
                class_="wide",
            )
        ),
        tag("p", f"0 to 100 % in every column.{some}", class_="note"),
        _table(report, columns),
        class_="panel",
    )


def _worth(result: ClassResult) -> float:
    attack = result.attack.value if result.attack is not None else 0.0
    return (result.benign.value if result.benign is not None else 1.0) - attack


def _x(column: int, share: float) -> float:
    return _NAME + column * _COLUMN + _PAD + share * (_COLUMN - 2 * _PAD)


def _grid(column: int, title: str, height: float) -> list[Markup]:
    lines = [
        tag("line", x1=_x(column, at), x2=_x(column, at), y1=_TOP - 6, y2=height, class_="grid") for at in (0, 0.5, 1)
    ]
    return [tag("text", title, x=_x(column, 0), y=12, class_="label strong"), *lines]


def _row(
    report: Report, result: ClassResult, before: ClassResult | None, columns: tuple[tuple[str, str, str], ...], y: float
) -> list[Markup]:
    name = report.name_of(result.label)
    short = name if len(name) <= 32 else name[:31] + "…"
    pieces = [tag("text", tag("title", name), short, x=_NAME - 6, y=y + 4, class_="label end")]
    for number, (field, colour, title) in enumerate(columns):
        rate: Rate | None = getattr(result, field)
        if rate is None:
            continue
        here = _x(number, rate.value)
        old: Rate | None = getattr(before, field) if before is not None else None
        hint = f"{name}, {title.lower()}: {rate_text(rate, report.confidence)}"
        if old is not None:
            hint += f"; before {percent(old.value)}"
            there = _x(number, old.value)
            pieces.append(tag("line", x1=there, x2=here, y1=y, y2=y, class_=f"way {colour}"))
            pieces.append(tag("circle", cx=there, cy=y, r=3.5, class_=f"ring {colour}"))
        pieces.append(tag("circle", tag("title", hint), cx=here, cy=y, r=4, class_=f"dot {colour}"))
    return pieces


def _table(report: Report, columns: tuple[tuple[str, str, str], ...]) -> Markup:
    old = {result.label: result for result in report.baseline.classes} if report.baseline is not None else {}
    head = [tag("th", "Class", scope="col"), tag("th", "Images", scope="col")]
    for _, _, title in columns:
        head += [tag("th", f"{title}, before", scope="col")] if old else []
        head.append(tag("th", title, scope="col"))
    rows = []
    for result in report.classes:
        if result.benign is None and result.attack is None:
            continue
        cells = [tag("th", report.name_of(result.label), scope="row")]
        cells.append(tag("td", f"{result.benign.total:,}" if result.benign is not None else "0"))
        for field, _, _ in columns:
            cells += [tag("td", _cell(getattr(old[result.label], field)))] if old else []
            cells.append(tag("td", _cell(getattr(result, field))))
        rows.append(tag("tr", *cells))
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
    return tag("details", tag("summary", "The numbers as a table"), scrolling(table))


def _cell(rate: Rate | None) -> str:
    return "–" if rate is None else percent(rate.value)
