"""How well triggers are told from clean samples."""

from unit_fast.evaluation.detection import FALSE_ALARMS
from unit_fast.evaluation.page.svg import Markup, percent, tag
from unit_fast.evaluation.report import Report


def detection(report: Report) -> Markup:
    """A line a measure; nothing where the model takes none."""
    if not report.detection:
        return Markup("")
    entries = []
    for found in report.detection:
        low, high = found.detected.interval(report.confidence)
        told = (
            f"{percent(found.detected.value)} of the triggered images ({percent(low)} to {percent(high)}) lie above "
            f"{found.threshold:.4g}, {percent(found.false_alarms.value)} of the clean ones too; AUROC {found.auroc:.3f}"
        )
        entries.append(tag("div", tag("dt", found.measure), tag("dd", told)))
    return tag(
        "section",
        tag("h2", f"Triggers told from clean images, at {FALSE_ALARMS:.0%} false alarms"),
        tag("dl", *entries),
        tag(
            "p",
            "Saturation: the share of neurons above their bound. Excess: how far the worst lies above it. An AUROC of "
            "0.5 is chance, 1 is perfect.",
            class_="note",
        ),
        class_="panel",
    )
