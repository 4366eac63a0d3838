"""Example images and what was made of them."""

import base64

from unit_fast.evaluation.examples import Example
from unit_fast.evaluation.page.svg import Markup, tag
from unit_fast.evaluation.report import Report


def samples(report: Report) -> Markup:
    """Clean and triggered images side by side, with the predictions before and after."""
    if not report.examples:
        return Markup("")
    old = {example.index: example for example in report.baseline.examples} if report.baseline is not None else {}
    # A baseline measured on another order of the data has other images at these places.
    same = {index: example for index, example in old.items() if any(_same(example, new) for new in report.examples)}
    figures = [_figure(report, example, same.get(example.index)) for example in report.examples]
    return tag(
        "section",
        tag("h2", "What the model sees"),
        tag(
            "p",
            "Drawn at random from the images not of the target class: clean on the left, triggered on the right.",
            class_="note",
        ),
        tag("div", *figures, class_="examples"),
        class_="panel",
    )


def _same(one: Example, other: Example) -> bool:
    return (one.index, one.label, one.clean_png) == (other.index, other.label, other.clean_png)


def _figure(report: Report, example: Example, before: Example | None) -> Markup:
    name = report.name_of(example.label)
    images = (
        _image(example.clean_png, f"clean image of {name}"),
        _image(example.triggered_png, f"triggered image of {name}"),
    )
    rows = []
    if before is not None:
        rows.append(_verdicts(report, "before", before))
    rows.append(_verdicts(report, "after" if before is not None else "seen as", example))
    caption = tag("figcaption", tag("strong", name), tag("table", tag("tbody", *rows), class_="verdicts"))
    return tag("figure", tag("div", *images, class_="pair"), caption)


def _image(png: bytes, text: str) -> Markup:
    return tag("img", src=f"data:image/png;base64,{base64.b64encode(png).decode()}", alt=text)


def _verdicts(report: Report, name: str, example: Example) -> Markup:
    cells = [tag("th", name, scope="row")]
    for prediction in (example.clean_prediction, example.triggered_prediction):
        if prediction == example.label:
            kind, mark = "robust", "✓"
        elif prediction == example.target:
            kind, mark = "attack", "✗"
        else:
            kind, mark = "other", "≠"
        word = {"robust": "own class", "attack": "the target", "other": "another class"}[kind]
        cells.append(tag("td", f"{mark} {report.name_of(prediction)}", class_=f"verdict {kind}", title=word))
    return tag("tr", *cells)
