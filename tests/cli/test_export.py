import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from unit_fast import Bounds, sanitize
from unit_fast.cli.models import load_model
from unit_fast.export import OnnxRuntimeModel


@pytest.fixture
def bounds(here: Path, unit_fast) -> Path:
    options = ("--method", "mean-std:1", "-o", "b.safetensors", "-q")
    assert unit_fast("calibrate", "-m", "model.pt2", "--data", "clean.npz", *options).exit_code == 0
    return here / "b.safetensors"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(["-m", "model.pt2"], id="input-of-the-archive"),
        pytest.param(["-m", "nets:net", "--weights", "weights.pth", "--data", "clean.npz"], id="input-of-the-data"),
        pytest.param(["-m", "nets:net", "--weights", "weights.pth", "--input-shape", "1x8x8"], id="input-by-shape"),
    ],
)
def test_the_file_computes_what_the_sanitised_model_does(
    here: Path, bounds: Path, unit_fast, source: list[str]
) -> None:
    result = unit_fast("export", *source, "-b", bounds, "-o", "m.onnx", "--json")

    assert result.exit_code == 0, result.stderr
    described = json.loads(result.stdout)
    assert described["parity"]["agreement"] == 1.0
    assert [site["form"] for site in described["sites"]] == ["min", "min"]
    model = load_model(source[1], weights=Path("weights.pth") if "--weights" in source else None)
    with np.load(here / "clean.npz") as arrays:
        x = torch.from_numpy(arrays["x"][:5])
    sanitized = sanitize(model, Bounds.load(bounds), x, backend="eager")
    torch.testing.assert_close(OnnxRuntimeModel(here / "m.onnx")(x), sanitized(x), rtol=1e-5, atol=1e-5)


def test_opset(here: Path, bounds: Path, unit_fast) -> None:
    result = unit_fast("export", "-m", "model.pt2", "-b", bounds, "-o", "m.onnx", "--opset", "18", "--no-verify")

    assert result.exit_code == 0, result.stderr
    assert {entry.version for entry in onnx.load(here / "m.onnx").opset_import if entry.domain == ""} == {18}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--form", "clip"], "clip", id="clip-for-neuron-bounds"),
        pytest.param(["--form", "fold"], "fold", id="unknown-form"),
        pytest.param(["--opset", "7"], "opset", id="opset"),
        pytest.param(["--dtype", "int4"], "int4", id="precision"),
        pytest.param(["--input-shape", "1x8"], "", id="shape-that-does-not-fit"),
        pytest.param(["--input-shape", "1x8xb"], "--input-shape 1x8xb: expected whole numbers", id="shape-text"),
        pytest.param(["--input-shape", "0x8x8"], "expected numbers above 0", id="shape-zero"),
        pytest.param(["-o", "absent/m.onnx"], "there is no folder absent", id="unwritable"),
    ],
)
def test_mistakes_are_one_line_and_2_and_leave_no_file(
    here: Path, bounds: Path, unit_fast, arguments: list[str], says: str
) -> None:
    model = ("-m", "nets:net", "--weights", "weights.pth")
    shape = () if "--input-shape" in arguments else ("--input-shape", "1x8x8")

    result = unit_fast("export", *model, "-b", bounds, *shape, *arguments)

    assert result.exit_code == 2, result.stderr
    assert says in result.stderr.splitlines()[-1]
    assert not list(here.glob("*.onnx*"))


def test_an_input_that_nobody_names(bounds: Path, unit_fast) -> None:
    result = unit_fast("export", "-m", "nets:net", "--weights", "weights.pth", "-b", bounds)

    assert result.exit_code == 2
    assert "give --data (some real samples, best) or --input-shape" in result.stderr
