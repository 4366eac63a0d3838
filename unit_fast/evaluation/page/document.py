"""The page as a whole."""

from collections.abc import Mapping, Sequence

from unit_fast.evaluation.histograms import SiteHistogram
from unit_fast.evaluation.page.activations import activations
from unit_fast.evaluation.page.classes import class_chart
from unit_fast.evaluation.page.detection import detection
from unit_fast.evaluation.page.headline import headline, sentence
from unit_fast.evaluation.page.outcome import outcome
from unit_fast.evaluation.page.samples import samples
from unit_fast.evaluation.page.style import STYLE
from unit_fast.evaluation.page.svg import Markup, join, tag
from unit_fast.evaluation.report import Report

# Nothing but what is in the file may be shown, so no mistake of ours can make the page fetch anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(
    report: Report, *, title: str, histograms: Sequence[SiteHistogram] = (), settings: Mapping[str, object]
) -> str:
    """The report as HTML; the same input gives the same text."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        tag(
            "main",
            tag("header", tag("h1", title), tag("p", sentence(report), class_="lead"), _measured(report)),
            headline(report),
            outcome(report),
            detection(report),
            samples(report),
            activations(histograms),
            class_chart(report),
            _settings(report, settings),
        ),
    )
    return join(Markup("<!doctype html>\n"), tag("html", head, body, lang="en"), Markup("\n"))


def _measured(report: Report) -> Markup:
    pieces = [f"{report.benign.total:,} clean images of {len(report.classes)} classes"]
    if report.attack is not None:
        target = report.name_of(report.target) if isinstance(report.target, int) else str(report.target)
        pieces += [f"{report.attack.total:,} triggered images not of the target", f"target: {target}"]
    return tag("p", " · ".join(pieces), class_="note")


def _settings(report: Report, settings: Mapping[str, object]) -> Markup:
    entries: dict[str, object] = {}
    if report.trigger is not None:
        target = f" ({report.name_of(report.target)})" if isinstance(report.target, int) and report.class_names else ""
        entries = {"trigger": report.trigger, "target": f"{report.target}{target}"}
    entries.update(settings)
    entries.update(report.provenance)
    rows = [
        tag("div", tag("dt", name), tag("dd", "–" if value is None else str(value))) for name, value in entries.items()
    ]
    return tag("section", tag("h2", "Settings and origin"), tag("dl", *rows), class_="panel")
