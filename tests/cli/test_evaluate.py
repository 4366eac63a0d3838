import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from unit_fast import evaluate, triggers
from unit_fast.cli.models import load_model, runnable

CUSTOM = """
def flip(images):
    return 1 - images
"""


@pytest.fixture
def bounds(here: Path, fitted) -> Path:
    """Bounds that clamp, so that the model with them differs from the model without."""
    return Path(shutil.copy(fitted("mean-std:0"), here / "b.safetensors"))


@pytest.mark.usefixtures("here")
def test_clean_accuracy_of_the_model_alone(unit_fast) -> None:
    report = json.loads(unit_fast("evaluate", "-m", "model.pt2", "--data", "clean.npz", "--json").stdout)

    assert report["benign_accuracy"] == 1.0
    assert report["attack_success_rate"] is None
    assert report["baseline"] is None


@pytest.mark.parametrize("batch_size", [7, 120])
def test_agrees_with_the_library(here: Path, bounds: Path, unit_fast, batch_size: int) -> None:
    result = unit_fast(
        "evaluate", "-m", "model.pt2", "--bounds", bounds, "--data", "clean.npz", "--trigger",
        "patch:size=3,row=1,col=2,value=1", "--target", "1", "--batch-size", batch_size, "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    with np.load(here / "clean.npz") as arrays:
        batch = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    model = runnable(load_model("model.pt2"))
    trigger = triggers.Patch(size=3, row=1, col=2, value=1.0)
    truth = evaluate(model, [batch], trigger=trigger, target=1)
    assert report["baseline"]["attack_success_rate"] == truth.attack_success_rate
    assert report["baseline"]["benign_accuracy"] == truth.benign_accuracy == 1.0
    assert report["benign_accuracy"] < 1.0
    assert report["defence_effectiveness"] is not None


def test_table_json_and_page(here: Path, bounds: Path, unit_fast) -> None:
    (here / "flips.py").write_text(CUSTOM)

    result = unit_fast(
        "evaluate", "-m", "model.pt2", "-b", bounds, "--data", "clean.npz", "--trigger", "custom:flips:flip",
        "--target", "all-to-all", "-o", "report.json", "--html", "report.html",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert "attack success rate" in result.stdout
    report = json.loads((here / "report.json").read_text())
    assert report["target"] == "all-to-all"
    assert [found["measure"] for found in report["detection"]] == ["saturation", "excess"]
    assert "triggers told by excess" in result.stdout
    page = (here / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "clean.npz" in page
    # The sites of the model, drawn.
    assert "<svg" in page


def test_an_onnx_file_beside_the_model(bounds: Path, unit_fast) -> None:
    exported = unit_fast("export", "-m", "model.pt2", "-b", bounds, "-o", "m.onnx", "-q", "--inspect")
    assert exported.exit_code == 0, exported.stderr
    attack = ("--trigger", "patch:size=3,value=1", "--target", "1", "--json")

    onnx = unit_fast("evaluate", "-m", "model.pt2", "--onnx", "m.onnx", "--data", "clean.npz", *attack)
    torch_ = unit_fast("evaluate", "-m", "model.pt2", "--bounds", bounds, "--data", "clean.npz", *attack)

    assert onnx.exit_code == 0, onnx.stderr
    names = ("benign_accuracy", "attack_success_rate", "robust_accuracy")
    assert [json.loads(onnx.stdout)[name] for name in names] == [json.loads(torch_.stdout)[name] for name in names]
    told_apart = [
        found["auroc"]
        for result in (onnx, torch_)
        for found in json.loads(result.stdout)["detection"]
        if found["measure"] == "excess"
    ]
    assert told_apart[0] == pytest.approx(told_apart[1], abs=1e-3)
    assert len(told_apart) == 2


def test_half_precision_stays_close(bounds: Path, unit_fast) -> None:
    arguments = ("evaluate", "-m", "model.pt2", "-b", bounds, "--data", "clean.npz", "--json")

    full, half = (json.loads(unit_fast(*arguments, "--dtype", dtype).stdout) for dtype in ("float32", "bfloat16"))

    assert abs(full["benign_accuracy"] - half["benign_accuracy"]) < 0.1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--trigger", "patch:size=3"], "--trigger is given without --target", id="trigger-without-target"),
        pytest.param(["--trigger", "stamp:size=3", "--target", "1"], "stamp", id="unknown-trigger"),
        pytest.param(["--trigger", "patch:size=20", "--target", "1"], "does not fit", id="patch-too-large"),
        pytest.param(["--trigger", "add:absent.png", "--target", "1"], "there is no file absent.png", id="no-picture"),
        pytest.param(["--trigger", "patch:size=2", "--target", "9"], "class 9 is out of range", id="target-too-high"),
        pytest.param(["--trigger", "patch:size=2", "--target", "x"], "--target x: expected a class", id="target-text"),
        pytest.param(["--bounds", "absent.safetensors"], "there is no bounds file absent", id="no-bounds"),
        pytest.param(["--bounds", "clean.npz"], "clean.npz is no bounds file", id="not-bounds"),
        pytest.param(["--bounds", "b.safetensors", "--onnx", "m.onnx"], "measure one at a time", id="bounds-and-onnx"),
        pytest.param(["--onnx", "absent.onnx"], "there is no file absent.onnx", id="no-onnx"),
        pytest.param(["--dtype", "float16"], "--dtype is for a model with --bounds", id="dtype-alone"),
        pytest.param(["--device", "cuda:77"], "--device cuda:77: ", id="no-such-device"),
        pytest.param(["--device", "tpu"], "expected auto, cpu, cuda or cuda:N", id="unknown-device"),
        pytest.param(["--mean", "0.5,0.5"], "--mean has 2 numbers for images of 1", id="mean-of-other-channels"),
        pytest.param(["--html", "absent/r.html"], "--html absent/r.html: there is no folder", id="unwritable-page"),
        pytest.param(["-o", "r", "--html", "./r"], "--html r is the file that --output goes to", id="one-for-both"),
        pytest.param(["--trigger", "blend:nets.py,ratio=0.2", "-o", "nets.py"], "--trigger names", id="is-trigger"),
    ],
)
@pytest.mark.usefixtures("here")
def test_mistakes_are_one_line_and_2(unit_fast, arguments: list[str], says: str) -> None:
    result = unit_fast("evaluate", "-m", "model.pt2", "--data", "clean.npz", *arguments)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in result.stderr.splitlines()[-1]


def test_bounds_of_another_model(here: Path, bounds: Path, unit_fast) -> None:
    state = {name: tensor + 1 for name, tensor in torch.load(here / "weights.pth").items()}
    torch.save(state, here / "other.pth")

    result = unit_fast("evaluate", "-m", "nets:net", "--weights", "other.pth", "-b", bounds, "--data", "clean.npz")

    assert result.exit_code == 2
    assert "fitted on another model" in result.stderr


def test_a_truncated_bounds_file(bounds: Path, unit_fast) -> None:
    bounds.write_bytes(bounds.read_bytes()[:-10])

    result = unit_fast("evaluate", "-m", "model.pt2", "-b", bounds, "--data", "clean.npz")

    assert result.exit_code == 2
    assert "truncated" in result.stderr


@pytest.mark.parametrize("command", ["calibrate", "evaluate", "export"])
@pytest.mark.parametrize("model", [["model.pt2"], ["nets:net", "--weights", "weights.pth"]], ids=["archive", "factory"])
@pytest.mark.parametrize(
    ("change", "shape"),
    [
        pytest.param(lambda x: x[:, :, :4, :4], "(2, 1, 4, 4)", id="smaller"),
        pytest.param(lambda x: np.tile(x, (1, 1, 2, 2)), "(2, 1, 16, 16)", id="larger"),
        pytest.param(lambda x: np.tile(x, (1, 3, 1, 1)), "(2, 3, 8, 8)", id="colour"),
    ],
)
def test_images_the_model_does_not_take(here: Path, bounds: Path, unit_fast, command, model, change, shape) -> None:
    with np.load(here / "clean.npz") as arrays:
        np.savez(here / "other.npz", x=change(arrays["x"]), y=arrays["y"])
    with_bounds = () if command == "calibrate" else ("-b", bounds)

    result = unit_fast(command, "-m", *model, "--data", "other.npz", *with_bounds)

    assert result.exit_code == 2, result.stderr
    assert f"the model does not run on a batch of shape {shape}: " in result.stderr.splitlines()[-1]


def test_another_size_than_neuron_bounds_were_fitted_for(here: Path, unit_fast) -> None:
    (here / "pooled.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    tail = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *tail)\n"
    )
    state = {"0.weight": torch.rand(4, 1, 3, 3), "0.bias": torch.zeros(4)}
    torch.save(state | {"4.weight": torch.rand(3, 4), "4.bias": torch.zeros(3)}, here / "pooled.pth")
    model = ("-m", "pooled:net", "--weights", "pooled.pth")
    with np.load(here / "clean.npz") as arrays:
        np.savez(here / "larger.npz", x=np.tile(arrays["x"], (1, 1, 2, 2)), y=arrays["y"])
    assert unit_fast("calibrate", *model, "--data", "clean.npz", "--method", "maximum", "-q").exit_code == 0

    result = unit_fast("evaluate", *model, "--data", "larger.npz", "-b", "bounds.safetensors")

    assert result.exit_code == 2
    assert "site 1 has activations (4, 14, 14), its bounds per neuron were fitted for (4, 6, 6)" in result.stderr


def test_images_without_labels(here: Path, unit_fast) -> None:
    with np.load(here / "clean.npz") as arrays:
        np.savez(here / "unlabelled.npz", x=arrays["x"])

    result = unit_fast("evaluate", "-m", "model.pt2", "--data", "unlabelled.npz")

    assert result.exit_code == 2
    assert "has no labels" in result.stderr
