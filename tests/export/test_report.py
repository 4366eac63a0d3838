"""ExportReport: what an export hands back."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from unit_fast.export import ExportReport, ParityCheck, ParityResult, SiteReport


@pytest.fixture
def report() -> ExportReport:
    checks = (
        ParityCheck("ordinary", 1, False, 1e-6, 2e-7, 1.0),
        ParityCheck("×100", 7, True, 3e-5, 4e-6, 0.875, output_rel=3e-6),
    )
    return ExportReport(
        path=Path("model.onnx"),
        opset=20,
        form="auto",
        precision="fp32",
        sites=(
            SiteReport("layer1.relu", "clip", "one bound for the site", (), True),
            SiteReport("layer2.relu", "min", "any granularity", (8, 1, 1), False),
        ),
        size=123456,
        external_data=None,
        parity=ParityResult("onnxruntime 1.32.0", 1e-5, checks, ()),
        sha256="ab" * 32,
        seconds=1.5,
    )


def test_it_sums_up_its_checks(report: ExportReport) -> None:
    assert report.parity is not None
    assert (report.parity.max_abs, report.parity.max_rel, report.parity.agreement) == (3e-5, 4e-6, 0.875)
    assert report.parity.batches == (1, 7)
    assert report.parity.summary() == (
        "onnxruntime 1.32.0, optimised and not, batches 1, 7, inputs ×1 to ×100: relative error at most 4.0e-06, "
        "of outputs 3.0e-06 (limit 1e-05 or four times what torch rounds by), argmax agreement 0.8750"
    )
    assert report.forms == {"layer1.relu": "clip", "layer2.relu": "min"}


def test_its_dict_is_json(report: ExportReport) -> None:
    data = json.loads(json.dumps(report.to_dict()))

    assert data["path"] == "model.onnx"
    assert data["sites"][1] == {
        "site": "layer2.relu",
        "form": "min",
        "reason": "any granularity",
        "bound_shape": [8, 1, 1],
        "reached": False,
    }
    assert (data["parity"]["max_rel"], data["parity"]["output_rel"]) == (4e-6, 3e-6)
    assert data["parity"]["checks"][1]["inputs"] == "×100"
    assert replace(report, parity=None).to_dict()["parity"] is None


def test_its_table_shows_sites_and_parity(report: ExportReport) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report)
    text = console.export_text()

    for shown in ("layer1.relu", "scalar", "8×1×1", "clip", "0.12 MB", "4e-06", "0.8750", "opset 20"):
        assert shown in text

    console.print(replace(report, parity=None))
    assert "not verified" in console.export_text()
