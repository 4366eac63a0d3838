"""Boxes ⇒ an SVG that reads well on light and dark grounds and needs nothing else."""

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from unit_fast.export.picture.layers import Metrics, Point, arrange
from unit_fast.export.picture.nodes import Box

# By form, a colour for light and one for dark grounds; text on each keeps 4.5 : 1.
_COLOURS = {
    "clip": ("#0b62b8", "#63b0fa"),
    "min": ("#b3420a", "#ff9157"),
    "mul_clip": ("#6b3fa0", "#c3a1f4"),
    "folded": ("#0b7459", "#45cfa6"),
    "hard_sigmoid": ("#8a5300", "#e0a84a"),
    "scale": ("#8f1d63", "#f08cc4"),
    "integer min": ("#a8202f", "#ff8f8a"),
    "none": ("#667180", "#8996a7"),
}
_OTHER = ("#5b5b2e", "#c9c97a")
_PLAIN = ("node", "input", "output")
_MARGIN = 24
_TITLE = 64
_LETTERS = 27  # that fit a box
_CORNER = 8


def draw(boxes: Sequence[Box], title: str, subtitle: str) -> str:
    """The picture as text.

    Args:
        boxes: what to draw.
        title: its first line.
        subtitle: its second line.
    """
    metrics = Metrics()
    drawing = arrange([box.sources for box in boxes], metrics)
    forms = sorted({box.kind for box in boxes} - set(_PLAIN))
    width = max(drawing.width, 640) + 2 * _MARGIN
    height = drawing.height + _TITLE + 2 * _MARGIN
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_number(width)} {_number(height)}",
            "width": _number(width),
            "height": _number(height),
            "role": "img",
            "aria-label": f"{title}. {subtitle}",
        },
    )
    ET.SubElement(svg, "style").text = _style(forms)
    ET.SubElement(svg, "rect", {"class": "ground", "width": "100%", "height": "100%"})
    _text(svg, _MARGIN, _MARGIN + 14, title, "title")
    _text(svg, _MARGIN, _MARGIN + 33, subtitle, "soft")
    _legend(svg, boxes, forms)
    body = ET.SubElement(svg, "g", {"transform": f"translate({_MARGIN} {_MARGIN + _TITLE})"})
    lines = [_curve(start, end) for start, end in drawing.curves] + [_turn(corners) for corners in drawing.turns]
    ET.SubElement(body, "path", {"class": "line", "d": " ".join(lines)})
    for box, (x, y) in zip(boxes, drawing.places, strict=True):
        _box(body, box, x - metrics.width / 2, y - metrics.height / 2, metrics)
    return ET.tostring(svg, encoding="unicode") + "\n"


def page(svg: str, title: str) -> str:
    """The picture in an HTML page."""
    head = ET.Element("head")
    ET.SubElement(head, "meta", {"charset": "utf-8"})
    ET.SubElement(head, "title").text = title
    ET.SubElement(
        head, "style"
    ).text = (
        "body { margin: 0; background: #f5f6f8 } @media (prefers-color-scheme: dark) { body { background: #0f141b } }"
    )
    return (
        f'<!doctype html>\n<html lang="en">{ET.tostring(head, encoding="unicode", method="html")}'
        f"<body>{svg}</body></html>\n"
    )


def _style(forms: Sequence[str]) -> str:
    light, dark = (
        " ".join(f".{_class(form)} {{ --hue: {_COLOURS.get(form, _OTHER)[which]} }}" for form in forms)
        for which in (0, 1)
    )
    return (
        "svg { --ground: #f5f6f8; --card: #ffffff; --ink: #17202b; --soft: #566273; --edge: #aeb8c5; --on: #ffffff }"
        f" {light}"
        " text { font: 12px system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif; fill: var(--ink) }"
        " .ground { fill: var(--ground) }"
        " .title { font-size: 17px; font-weight: 650 }"
        " .soft { fill: var(--soft); font-size: 11px } text.soft.head { font-size: 13px }"
        " .line { fill: none; stroke: var(--edge); stroke-width: 1.5 }"
        " .box rect { fill: var(--card); stroke: var(--edge) }"
        " .box text { text-anchor: middle } .box .what { font-weight: 600 }"
        " .end rect { stroke: var(--ink); stroke-width: 1.5 }"
        " .clamp rect { fill: var(--hue); stroke: var(--hue) } .clamp text { fill: var(--on) }"
        " .key { fill: var(--hue) }"
        " @media (prefers-color-scheme: dark) {"
        " svg { --ground: #0f141b; --card: #18202b; --ink: #e7ecf3; --soft: #a3afbf; --edge: #4c5b6e; --on: #10151c }"
        f" {dark} }}"
    )


def _legend(svg: ET.Element, boxes: Sequence[Box], forms: Sequence[str]) -> None:
    counts = Counter(box.kind for box in boxes)
    x = float(_MARGIN)
    for form in forms:
        group = ET.SubElement(svg, "g", {"class": _class(form)})
        y = _MARGIN + 44
        ET.SubElement(
            group, "rect", {"class": "key", "x": _number(x), "y": str(y), "width": "12", "height": "12", "rx": "3"}
        )
        label = f"{form}: {counts[form]} clamp{'s' if counts[form] != 1 else ''}"
        _text(group, x + 18, y + 10, label, "legend")
        x += 18 + 7 * len(label) + 16


def _box(parent: ET.Element, box: Box, x: float, y: float, metrics: Metrics) -> None:
    classes = {"input": "box end", "output": "box end", "node": "box"}
    group = ET.SubElement(parent, "g", {"class": classes.get(box.kind, f"box clamp {_class(box.kind)}")})
    ET.SubElement(group, "title").text = "\n".join(box.details)
    ET.SubElement(
        group,
        "rect",
        {
            "x": _number(x),
            "y": _number(y),
            "width": _number(metrics.width),
            "height": _number(metrics.height),
            "rx": "7",
        },
    )
    middle = x + metrics.width / 2
    _text(group, middle, y + (15 if box.subtitle else 22), _short(box.title), "what")
    if box.subtitle:
        _text(group, middle, y + 29, _short(box.subtitle), "soft")


def _text(parent: ET.Element, x: float, y: float, text: str, class_: str) -> None:
    ET.SubElement(parent, "text", {"x": _number(x), "y": _number(y), "class": class_}).text = text


def _short(text: str) -> str:
    # The end of a module's path tells more than its beginning.
    return text if len(text) <= _LETTERS else f"…{text[1 - _LETTERS :]}"


def _class(form: str) -> str:
    return f"form-{form.replace('_', '-').replace(' ', '-')}"


def _curve(start: Point, end: Point) -> str:
    (x, y), (to_x, to_y) = start, end
    if abs(x - to_x) < 0.5:
        return f"M{_number(x)} {_number(y)}V{_number(to_y)}"
    middle = _number((y + to_y) / 2)
    return f"M{_number(x)} {_number(y)}C{_number(x)} {middle} {_number(to_x)} {middle} {_number(to_x)} {_number(to_y)}"


def _turn(corners: Sequence[Point]) -> str:
    path = [f"M{_number(corners[0][0])} {_number(corners[0][1])}"]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        into, out = _towards(corner, before), _towards(corner, after)
        path.append(f"L{_number(into[0])} {_number(into[1])}")
        path.append(f"Q{_number(corner[0])} {_number(corner[1])} {_number(out[0])} {_number(out[1])}")
    path.append(f"L{_number(corners[-1][0])} {_number(corners[-1][1])}")
    return "".join(path)


def _towards(corner: Point, other: Point) -> Point:
    """The point of the line from ``corner`` to ``other`` where the corner's rounding begins."""
    distance = abs(corner[0] - other[0]) + abs(corner[1] - other[1])
    share = min(_CORNER, distance / 2) / distance if distance else 0.0
    return corner[0] + share * (other[0] - corner[0]), corner[1] + share * (other[1] - corner[1])


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
