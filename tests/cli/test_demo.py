import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unit_fast import Bounds
from unit_fast.cli.demo import _require_same
from unit_fast.cli.demo_digits import CALIBRATION_SHARE, TARGET, TRIGGER, load_digits
from unit_fast.errors import ParityError
from unit_fast.evaluation.detection import Detection
from unit_fast.evaluation.metrics import Rate
from unit_fast.evaluation.report import Report

SCRIPT = Path(sys.executable).with_name("unit-fast")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("demo") / "made" / "on-the-way"
    result = subprocess.run([SCRIPT, "demo", "-o", folder, "--json"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "5/5" in result.stderr
    return folder, json.loads(result.stdout)


def test_the_backdoor_is_there_and_then_it_is_not(demo: tuple[Path, dict[str, Any]]) -> None:
    _, result = demo

    assert result["before"]["benign_accuracy"] > 0.95
    assert result["before"]["attack_success_rate"] > 0.95
    assert result["after"]["benign_accuracy"] > result["before"]["benign_accuracy"] - 0.03
    assert result["after"]["attack_success_rate"] < 0.1


def test_onnx_runtime_sees_the_same(demo: tuple[Path, dict[str, Any]]) -> None:
    _, result = demo

    assert result["onnx"] == result["after"]


def test_what_it_leaves_can_be_used_again(demo: tuple[Path, dict[str, Any]], unit_fast) -> None:
    folder, result = demo

    assert {Path(path).name for path in result["files"].values()} == {path.name for path in folder.iterdir()}
    assert Bounds.load(folder / "bounds.safetensors").granularity == "neuron"
    assert "<svg" in (folder / "report.html").read_text()
    again = unit_fast(
        "evaluate", "-m", folder / "model.pt2", "-b", folder / "bounds.safetensors", "--data", folder / "test.npz",
        "--trigger", str(TRIGGER), "--target", TARGET, "--json",
    )  # fmt: skip
    assert again.exit_code == 0, again.stderr
    report = json.loads(again.stdout)
    assert report["attack_success_rate"] == result["after"]["attack_success_rate"]
    assert report["benign_accuracy"] == result["after"]["benign_accuracy"]


def test_the_defender_has_5_percent_that_the_attacker_never_saw() -> None:
    digits = load_digits(seed=0)
    parts = (digits.train, digits.calibration, digits.test)
    images = [{image.numpy().tobytes() for image in part[0]} for part in parts]

    assert sum(len(part[1]) for part in parts) == 1797
    assert len(digits.calibration[1]) == round(1797 * CALIBRATION_SHARE)
    assert torch.bincount(digits.calibration[1], minlength=10).min() >= 8
    assert not images[0] & images[1]
    assert not images[2] & images[1]


def test_a_file_in_the_way_is_found_before_any_training(tmp_path: Path, unit_fast) -> None:
    (tmp_path / "taken").touch()

    result = unit_fast("demo", "-o", tmp_path / "taken")

    assert result.exit_code == 2
    assert "cannot make the folder" in result.stderr
    assert "train" not in result.stderr


@pytest.mark.parametrize("changed", ["predictions", "excess"])
def test_a_file_that_behaves_differently_is_an_error(changed: str) -> None:
    alike, half = (Detection("excess", auroc, Rate(5, 10), Rate(1, 10), 1.0) for auroc in (0.9, 0.5))
    in_torch = Report(Rate(9, 10), Rate(1, 9), Rate(8, 9), (), detection=(alike,))
    in_onnx = {
        "predictions": dataclasses.replace(in_torch, benign=Rate(8, 10)),
        "excess": dataclasses.replace(in_torch, detection=(half,)),
    }[changed]
    _require_same(in_torch, in_torch)

    with pytest.raises(ParityError, match="behaves differently from torch"):
        _require_same(in_torch, in_onnx)
