import re
import xml.etree.ElementTree as ElementTree
from html import unescape
from html.parser import HTMLParser

import pytest
import torch
from torch import Tensor

from unit_fast.evaluation import Report, SiteHistogram, collect_histograms, evaluate
from unit_fast.evaluation.page import render
from unit_fast.evaluation.page.activations import round_ticks
from unit_fast.evaluation.page.style import STYLE
from unit_fast.evaluation.triggers import Patch

EMPTY_ELEMENTS = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Fails on elements that are not closed in order; collects what the page shows and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loads: list[str] = []
        self.headings: list[str] = []
        self.unnamed: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loads += [values[key] for key in ("src", "href", "action", "data") if key in values]
        if (tag == "svg" and not values.get("aria-label")) or (tag == "img" and not values.get("alt")):
            self.unnamed.append(tag)
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def model(classes: int, backdoor: bool):
    def run(x: Tensor) -> Tensor:
        seen = (x[:, 0, 0, 0] * classes).long().clamp(max=classes - 1)
        if backdoor:
            seen = torch.where(x[:, 0, -1, -1] == 1, 1, seen)
        return torch.nn.functional.one_hot(seen, classes).float()

    return run


def measured(classes: int = 4, names: tuple[str, ...] = (), **settings) -> Report:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(60, 3, 6, 6, generator=generator) * 0.9
    y = (x[:, 0, 0, 0] * classes).long()
    y[::7] = 0
    defaults = {"trigger": Patch(size=1, row=-1, col=-1), "target": 1, "baseline": model(classes, True)}
    return evaluate(model(classes, False), [(x, y)], class_names=names, **{**defaults, **settings})


def some_histograms() -> tuple[SiteHistogram, ...]:
    return collect_histograms(
        lambda x: (x, {"layer1.relu": torch.relu(x), "layer2<&>": torch.tanh(x)}),
        [torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))],
        bounds={"layer1.relu": torch.full((3, 1, 1), 1.25)},
        trigger=lambda x: x + 2,
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return measured(names=("stop", "yield", "<b>no & entry</b>", "roundabout"))


@pytest.fixture(scope="module")
def page(report) -> str:
    return render(report, title="Signs <1>", histograms=some_histograms(), settings={"model": "a.pth", "seed": None})


def test_the_page_is_one_file_that_loads_nothing(page):
    loads = parsed(page).loads
    assert loads
    assert all(load.startswith("data:image/png;base64,") for load in loads)
    assert not re.search(r"https?:|@import|url\(|<script|<link", page)
    assert "default-src 'none'" in unescape(page)


def test_every_drawing_is_well_formed_and_has_a_name(page):
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 4 + 1 + 2 + 1  # cards, outcome, two sites, classes
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert parsed(page).unnamed == []


def test_numbers_are_finite_and_inside_their_drawings(page):
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        root = ElementTree.fromstring(drawing)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for element in root.iter():
            for key in ("x", "x1", "x2", "cx"):
                assert -0.01 <= float(element.attrib.get(key, 0)) <= width + 0.01
            for key in ("y", "y1", "y2", "cy"):
                assert -0.01 <= float(element.attrib.get(key, 0)) <= height + 0.01


def test_the_headline_says_the_rates(page, report):
    text = " ".join(parsed(page).text)
    assert f"{100 * report.benign_accuracy:.1f}\N{NO-BREAK SPACE}%" in text
    assert f"{100 * report.attack_success_rate:.1f}\N{NO-BREAK SPACE}%" in text
    assert f"{100 * report.robust_accuracy:.1f}\N{NO-BREAK SPACE}%" in text
    assert f"{report.defence_effectiveness:.3f}" in text
    assert "from 100.0\N{NO-BREAK SPACE}%" in text
    assert "on the undefended model it was 100.0\N{NO-BREAK SPACE}%" in text


def test_all_sections_are_there(page):
    assert parsed(page).headings == [
        "Where triggered images go",
        "What the model sees",
        "Activations",
        "Class by class",
        "Settings and origin",
    ]


def test_names_are_escaped_wherever_they_appear(page):
    assert "<b>no" not in page
    assert "layer2<&>" not in page
    assert "layer2&lt;&amp;&gt;" in page
    assert "&lt;b&gt;no &amp; entry&lt;/b&gt;" in page
    assert "Signs &lt;1&gt;" in page


def test_settings_and_origin_are_listed(page, report):
    text = parsed(page).text
    for expected in ("a.pth", "1 (yield)", report.trigger, str(report.provenance["torch"])):
        assert expected in text


def test_the_same_report_gives_the_same_page(page, report):
    again = render(report, title="Signs <1>", histograms=some_histograms(), settings={"model": "a.pth", "seed": None})
    assert again == page


def test_outcome_bars_are_as_long_as_their_shares(report):
    page = render(report, title="t", settings={})
    drawing = next(d for d in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "Where triggered" in d)
    after = [e for e in ElementTree.fromstring(drawing).iter("rect") if float(e.attrib["y"]) > 0]
    lengths = {e.attrib["class"].split()[1]: float(e.attrib["width"]) for e in after}
    assert report.robust is not None
    room = 1040 - 56
    assert lengths["robust"] == pytest.approx(room * report.robust.value, abs=2)
    assert sum(lengths.values()) == pytest.approx(room, abs=5)


def test_predictions_before_and_after_stand_under_the_examples(report):
    page = render(report, title="t", settings={})
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert len(figures) == len(report.examples) == 12
    for figure, after in zip(figures, report.examples, strict=True):
        verdicts = re.findall(r'verdict (\w+)"', figure)
        assert verdicts[:2] == ["robust" if after.clean_prediction == after.label else verdicts[0], "attack"]
        assert verdicts[3] == ("robust" if after.triggered_prediction == after.label else verdicts[3])


def test_examples_of_a_baseline_on_other_images_are_not_shown_as_theirs(report):
    assert report.baseline is not None
    other = measured(names=report.class_names, examples=0)
    page = render(report.with_baseline(other), title="t", settings={})
    assert "seen as" in page
    assert '<th scope="row">before</th>' not in page


def test_a_clean_evaluation_has_no_attack_on_its_page():
    page = render(measured(trigger=None, target=None, baseline=None), title="t", settings={})
    assert parsed(page).headings == ["Class by class", "Settings and origin"]
    assert "ASR" not in page
    assert "DER" not in page


def test_without_a_baseline_nothing_is_called_before():
    page = render(measured(baseline=None), title="t", settings={})
    assert "before" not in " ".join(parsed(page).text)


def test_many_classes_show_the_worst_and_list_all():
    report = measured(classes=150)
    page = render(report, title="t", settings={})
    tested = sum(result.benign is not None for result in report.classes)
    assert page.count('class="label end"') == min(60, tested)
    if tested > 60:
        assert f"The 60 of {tested} classes that fare worst." in page
    table = page[page.index("The numbers as a table") :]
    assert table.count('scope="row"') == tested


def test_a_page_without_bounds_and_triggers_draws_the_clean_activations():
    histogram = SiteHistogram("a", (0.0, 1.0, 2.0), (10, 0))
    page = render(measured(), title="t", histograms=[histogram], settings={})
    assert 'class="area clean"' in page
    assert "curve attack" not in page
    assert "after the clamp" not in page


def test_an_outline_rises_by_the_logarithm_of_the_share():
    histogram = SiteHistogram("a", (0.0, 1.0, 2.0, 3.0), (9_990, 0, 10))
    page = render(measured(), title="t", histograms=[histogram], settings={})
    path = re.search(r'<path d="([^"]*)" class="area clean"', page)
    assert path is not None
    heights = [float(y) for y in re.findall(r"V([\d.]+)H", path[1])]
    base = float(re.match(r"M\S+ ([\d.]+)", path[1])[1])
    assert path[1].count("M") == 2  # the empty bin between is left out
    # 0.999 and 0.001 on a scale of four decades, 84 high: the smallest share there is stands above the base line
    assert [base - height for height in heights] == pytest.approx([84, 21], abs=0.2)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (-1.0, 1.2, [-1, -0.5, 0, 0.5, 1]),
        (0.0, 0.00037, [0, 0.0001, 0.0002, 0.0003]),
        (-3.0, 12_000.0, [0, 5000, 10000]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert round_ticks(low, high) == pytest.approx(expected)


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_marks_stand_out_from_their_ground(theme):
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[theme == "dark"]))
    for name in ("ink", "soft", "clean", "attack", "robust", "rating", "good", "bad"):
        assert contrast(colours[name], colours["card"]) >= 4.5, name
    for name in ("attack", "robust", "other"):
        assert contrast(colours["on"], colours[name]) >= 4.5, name
