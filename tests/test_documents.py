"""Every figure in the documents is one that was measured: tables and pictures are those of the results, and a number
in prose is in a table, or is known to be no measurement."""

import re

import pytest

from benchmarks.plots import PICTURES
from benchmarks.tables import DOCUMENTS, TABLES, filled, pictures_of

TRACED = [document for document in DOCUMENTS if document.name in ("README.md", "export.md", "performance.md")]

NO_MEASUREMENT = {
    r"ECCV 2024": "the paper",
    r"Python 3\.11": "what is needed",
    r"\b\d+×\d+\b(?! faster)": "sizes of images and kernels",
    r"\bbatch \d+": "which measurement",
    r"4,000 \(traffic signs\) and 10,000 \(CIFAR-10\) test images": "how large the data is",
    r"1,935 \(traffic signs\), 1,500 \(CIFAR-10\)": "how large the data is",
    r"500 images and 5,000 take the same": "held by tests/calibration/test_memory.py",
    r"300 steps \(20 steps timed": "the published search, and how it was timed",
    r"20th and 80th percentile": "what is shown",
    r"mini-batches of 256": "how it was run",
    r"takes 1\.5 µs": "an assumption of the simulation",
    r"should stay below 1\b": "what a share is",
    r"\b[15]e-?\d+\b": "limits of export.md: tolerances, and bounds that still fold",
    r"four times what": "of the rounding, held by tests/export/test_parity.py",
    r"×10(0)?\b|10 and 100|more than 20 times what": "inputs of the verification, held by tests/export/test_parity.py",
    r"Opsets 18 to 24; 20": "what is offered",
    r"above 2 GB": "the limit of protobuf",
    r"computes with 0\.5": "the default of HardSigmoid",
    r"torch 2\.11, Triton 3\.6|by Triton 3\.9": "what it was measured with",
    r"ONNX Runtime 1\.32|onnxruntime#\d+|2019|1906\.04721|section 4\.2": "versions and sources",
    r"bound / 255|more than 256 times|more than 5 %": "held by tests/export/quantization",
    r"0\.7 of the largest activation on 128 images \(32 at": "benchmarks.export_files",
    r"(ResNet|CIFAR)-\d+": "names; last, since some of the others hold one",
}
_FIGURE = re.compile(r"(?<![\w.,])\d(?:[\d,]*\d)?(?:\.\d+)?(?:\s?(?:×|%|[mµ]?s\b|[KMG]i?B\b))?")
_IN_WORDS = re.compile(
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|\w+ty|hundred) (?:times|percent|per cent)\b|fold\b"
)
_FILLED = re.compile(r"<!-- (?:table|picture): \w+ -->\n(.*?)<!-- end -->", re.DOTALL)
_CODE = re.compile(r"```.*?```|^    .*?$|`[^`]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)


def _untraceable(text: str) -> list[str]:
    """Figures outside the tables that no table has."""
    measured = {figure.replace(" ", "") for table in _FILLED.findall(text) for figure in _FIGURE.findall(table)}
    prose = _CODE.sub(" ", _FILLED.sub("", text))
    for pattern in NO_MEASUREMENT:
        prose = re.sub(pattern, "", prose)
    figures = [figure.replace(" ", "") for figure in _FIGURE.findall(prose)]
    # A table names a unit once, in its head.
    known = measured | {
        f"{figure}{unit}" for figure in measured for unit in ("%", "ms", "s", "MiB") if "×" not in figure
    }
    return [figure for figure in figures if figure not in known] + _IN_WORDS.findall(prose)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_and_pictures_are_those_of_the_results(document):
    text = document.read_text()
    assert "<!-- table: " in text
    assert filled(document) == text, "run: python -m benchmarks.report"
    for picture in pictures_of(text):
        assert (document.parent / picture).is_file(), "run: python -m benchmarks.report"


def test_every_table_and_picture_has_its_place_in_a_document():
    text = "".join(document.read_text() for document in DOCUMENTS)
    assert [name for name in TABLES if f"<!-- table: {name} -->" not in text] == []
    assert [name for name in PICTURES if f"<!-- picture: {name} -->" not in text and f"/{name}.svg" not in text] == []


@pytest.mark.parametrize("document", TRACED, ids=lambda path: path.name)
def test_a_number_in_prose_is_in_a_table_or_is_no_measurement(document):
    found = _untraceable(document.read_text())
    assert found == [], "in no table of this document; what is no measurement is named in NO_MEASUREMENT"


@pytest.mark.parametrize(
    ("claim", "found"),
    [
        ("It is 3.7× faster.", ["3.7×"]),
        ("It takes 12 ms.", ["12ms"]),
        ("Accuracy is 98.2 %.", ["98.2%"]),
        ("Attack success falls to 0.4.", ["0.4"]),
        ("It needs 1,234 MiB.", ["1,234MiB"]),
        ("It is ten times faster.", ["ten times"]),
        ("It is 2× as fast.", ["2×"]),
        ("It is 1.08× slower, 12.03 ms.", []),
        ("ResNet-18 for images of 32×32 at batch 16.", []),
        ("`x = 17.3`", []),
    ],
)
def test_a_number_that_nobody_measured_is_found(claim, found):
    rows = ("| way | ms | speed |", "| --- | --- | --- |", "| eager | 12.03 (11.39 to 12.94) | 1.08× |")
    assert _untraceable("\n".join((claim, "", "<!-- table: x -->", *rows, "<!-- end -->"))) == found


def test_what_is_said_to_be_no_measurement_still_stands_somewhere():
    text = "".join(document.read_text() for document in TRACED)
    assert [pattern for pattern in NO_MEASUREMENT if not re.search(pattern, text)] == []
