"""A report on the terminal."""

from rich.table import Table
from rich.text import Text

from unit_fast.evaluation.metrics import Rate
from unit_fast.evaluation.report import Report


def headline_table(report: Report) -> Table:
    """BA, ASR, RA and DER with their intervals, beside those of the baseline where there is one."""
    before = report.baseline
    caption = f"{report.benign.total:,} clean samples"
    if report.attack is not None:
        target = report.name_of(report.target) if isinstance(report.target, int) else report.target
        caption += f", {report.attack.total:,} triggered · {report.trigger} → {target}"
    table = Table(title="Evaluation", caption=caption, title_justify="left", caption_justify="left")
    table.add_column("")
    if before is not None:
        table.add_column("before", justify="right")
        table.add_column("after", justify="right")
        table.add_column("change", justify="right")
    else:
        table.add_column("%", justify="right")
    table.add_column(f"{report.confidence:.0%} interval", justify="right")

    rows = (
        ("benign accuracy (BA)", report.benign, before.benign if before else None, 1),
        ("attack success rate (ASR)", report.attack, before.attack if before else None, -1),
        ("robust accuracy (RA)", report.robust, before.robust if before else None, 1),
    )
    for name, rate, rate_before, good_direction in rows:
        if rate is None:
            continue
        cells: list[str | Text] = [name]
        if before is not None:
            assert rate_before is not None
            cells += [f"{rate_before.value:.2%}", f"{rate.value:.2%}", _change(rate, rate_before, good_direction)]
        else:
            cells.append(f"{rate.value:.2%}")
        low, high = rate.interval(report.confidence)
        table.add_row(*cells, f"{low:.2%} – {high:.2%}")
    blank = ("",) if before is not None else ()
    for found in report.detection:
        low, high = found.detected.interval(report.confidence)
        name = f"triggers told by {found.measure}, {found.false_alarms.value:.1%} false alarms"
        table.add_row(name, *blank, f"{found.detected.value:.2%}", *blank, f"{low:.2%} – {high:.2%}")
        table.add_row("  at any rate of false alarms (AUROC)", *blank, f"{found.auroc:.3f}", *blank, "")
    if report.defence_effectiveness is not None:
        table.add_row("defence effectiveness (DER)", "", f"{report.defence_effectiveness:.3f}", "", "")
    return table


def _change(after: Rate, before: Rate, good_direction: int) -> Text:
    points = 100 * (after.value - before.value)
    style = "" if abs(points) < 0.005 else ("green" if points * good_direction > 0 else "red")
    return Text(f"{points:+.2f}".replace("-", "−"), style=style)
