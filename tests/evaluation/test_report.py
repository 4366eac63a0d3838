import io
import json

import pytest
import torch
from rich.console import Console
from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation import Report, evaluate
from unit_fast.evaluation.triggers import Patch
from unit_fast.files import OutputError


def shy(x: Tensor) -> Tensor:
    """Class by the first pixel."""
    return torch.nn.functional.one_hot((x[:, 0, 0, 0] * 4).long().clamp(max=2), 3).float()


def backdoored(x: Tensor) -> Tensor:
    return torch.where(x[:, 0, -1, -1:] == 1, torch.tensor([0.0, 0.0, 5.0]), shy(x))


@pytest.fixture(scope="module")
def report() -> Report:
    generator = torch.Generator().manual_seed(1)
    loader = [(torch.rand(20, 3, 4, 4, generator=generator) * 0.9, torch.arange(20) % 3) for _ in range(3)]
    return evaluate(
        shy,
        loader,
        trigger=Patch(size=1, row=-1, col=-1),
        target=2,
        baseline=backdoored,
        class_names=("cat", "dog", "bird"),
        examples=3,
    )


def test_json_gives_the_report_back(report, tmp_path):
    path = report.save_json(tmp_path / "report.json")
    again = Report.load_json(path)
    assert again == report
    assert again.examples == report.examples
    assert again.provenance == report.provenance
    assert again.baseline == report.baseline
    assert again.defence_effectiveness == report.defence_effectiveness


def test_json_is_plain_and_says_the_rates(report):
    values = json.loads(report.to_json())
    assert (
        values["attack_success_rate"]
        == report.attack_success_rate
        == values["attack"]["hits"] / values["attack"]["total"]
    )
    assert values["attack"]["low"] <= values["attack"]["value"] <= values["attack"]["high"]
    assert values["baseline"]["attack_success_rate"] == 1.0
    assert [entry["name"] for entry in values["classes"]] == ["cat", "dog", "bird"]
    assert values["trigger"] == "patch:size=1,row=-1,col=-1,value=1"


def test_a_report_without_an_attack_goes_through_json(tmp_path):
    report = evaluate(shy, [(torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 0]))])
    assert Report.load_json(report.save_json(tmp_path / "report.json")) == report


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("{", "cannot read an evaluation report", id="cut short"),
        pytest.param("[]", "not an evaluation report", id="a list"),
        pytest.param('{"format": 1}', "not an evaluation report: KeyError: 'benign'", id="fields missing"),
        pytest.param('{"format": 2}', "report format 2: this version reads format 1; update", id="newer"),
    ],
)
def test_a_damaged_report_is_refused(content, message, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        Report.load_json(path)
    assert "report.json" in str(caught.value)


def test_a_missing_report_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json"):
        Report.load_json(tmp_path / "absent.json")


@pytest.mark.parametrize("save", ["save_json", "save_html"])
def test_a_folder_that_is_not_there_is_a_clear_error(report, save, tmp_path):
    with pytest.raises(OutputError, match="create the folder"):
        getattr(report, save)(tmp_path / "absent" / "report")


@pytest.mark.parametrize("save", ["save_json", "save_html"])
def test_files_are_written_whole_or_not_at_all(report, save, tmp_path, monkeypatch):
    path = tmp_path / "report"
    path.write_text("old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        getattr(report, save)(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report"]


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(report)
    return console.file.getvalue()


def test_the_table_shows_the_rates_before_and_after(report):
    text = shown(report)
    assert f"{report.benign_accuracy:.2%}" in text
    assert f"{report.attack_success_rate:.2%}" in text
    assert "100.00%" in text
    assert f"{report.defence_effectiveness:.3f}" in text
    assert "−" in text
    assert "bird" in text


def test_the_table_of_a_clean_evaluation_has_accuracy_alone():
    text = shown(evaluate(shy, [(torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 0]))]))
    assert "BA" in text
    assert "ASR" not in text
    assert "before" not in text
