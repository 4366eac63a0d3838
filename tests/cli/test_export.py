import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from unit_fast import Bounds, sanitize
from unit_fast.cli.models import load_model
from unit_fast.export import OnnxRuntimeModel

TRITON = ("--layout", "triton", "-o", "repository/net")
FAST = ("--no-verify", "--no-speed")


@pytest.fixture
def bounds(here: Path, fitted) -> Path:
    return Path(shutil.copy(fitted("mean-std:1"), here / "b.safetensors"))


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
    result = unit_fast("export", *source, "-b", bounds, "-o", "m.onnx", "--json", "--no-speed")

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
    result = unit_fast("export", "-m", "model.pt2", "-b", bounds, "-o", "m.onnx", "--opset", "18", *FAST)

    assert result.exit_code == 0, result.stderr
    assert {entry.version for entry in onnx.load(here / "m.onnx").opset_import if entry.domain == ""} == {18}


@pytest.mark.parametrize(
    ("arguments", "forms", "operators"),
    [
        pytest.param(["--form", "folded"], ["folded"], {"Clip", "HardSigmoid"}, id="folded"),
        pytest.param(["--form", "mul_clip"], ["mul_clip"], {"Clip"}, id="mul_clip"),
        pytest.param(["--target", "openvino"], ["mul_clip"], {"Clip"}, id="auto-for-openvino"),
        pytest.param(["--target", "tflite"], ["folded"], {"Clip"}, id="auto-for-tflite"),
    ],
)
def test_forms_and_targets(
    here: Path, bounds: Path, unit_fast, arguments: list[str], forms: list[str], operators: set[str]
) -> None:
    learned = Bounds.load(bounds)
    by_channel = {name: bound.amax((-2, -1), keepdim=True) for name, bound in learned.items()}
    replace(learned, tensors=by_channel, granularity="channel").save(here / "channel.safetensors")

    result = unit_fast(
        "export", "-m", "model.pt2", "-b", "channel.safetensors", *arguments, *FAST, "--graph", "g.svg", "--json"
    )

    assert result.exit_code == 0, result.stderr
    assert {site["form"] for site in json.loads(result.stdout)["sites"]} == set(forms)
    clamps = [node for node in onnx.load(here / "model.onnx").graph.node if node.name.endswith("/clamp")]
    assert {node.op_type for node in clamps} <= operators
    assert (
        (here / "g.svg").read_text().count(f'class="box clamp form-{forms[0].replace("_", "-")}"') == len(clamps) == 2
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--form", "clip"], "clip", id="clip-for-neuron-bounds"),
        pytest.param(["--form", "fold"], "fold", id="unknown-form"),
        pytest.param(["--target", "toaster"], "toaster", id="unknown-target"),
        pytest.param(["--opset", "7"], "opset", id="opset"),
        pytest.param(["--dtype", "int4"], "int4", id="precision"),
        pytest.param(["--input-shape", "1x8"], "", id="shape-that-does-not-fit"),
        pytest.param(["--input-shape", "1x8xb"], "--input-shape 1x8xb: expected whole numbers", id="shape-text"),
        pytest.param(["--input-shape", "0x8x8"], "expected numbers above 0", id="shape-zero"),
        pytest.param(["-o", "absent/m.onnx"], "there is no folder absent", id="unwritable"),
        pytest.param(["--dtype", "int8"], "--dtype int8 is fitted to data; give --data", id="int8-without-data"),
        pytest.param(["--fold-normalization"], "writes --mean and --std into the file", id="no-normalisation"),
        pytest.param(["--graph", "g.png"], "--graph g.png: a picture of the graph ends in .svg or .html", id="picture"),
        pytest.param(["--graph", "absent/g.svg"], "--graph absent/g.svg: there is no folder absent", id="graph-folder"),
        pytest.param(["-o", "b.safetensors"], "is what --bounds names and would be replaced", id="output-is-bounds"),
        pytest.param(["--graph", "weights.pth"], "is what --weights names", id="graph-is-weights"),
        pytest.param(["-o", "m.svg", "--graph", "m.svg"], "is the file that --output goes to", id="graph-is-output"),
        pytest.param(["--max-batch-size", "8"], "--max-batch-size is for --layout triton", id="server-option"),
        pytest.param(["--new-version"], "--new-version is for --layout triton", id="version-of-a-file"),
        pytest.param(["--layout", "zip"], "zip", id="layout"),
        pytest.param([*TRITON, "--max-batch-size", "-1"], "max_batch_size is -1", id="batch-size"),
        pytest.param([*TRITON, "--device", "tpu"], "'tpu' is unknown", id="device"),
        pytest.param([*TRITON, "--preferred-batch-sizes", "8;9"], "8;9: expected whole numbers", id="preferred"),
        pytest.param([*TRITON, "--new-version"], "holds no config.pbtxt", id="version-of-nothing"),
        pytest.param([*TRITON, "--new-version", "--instances", "2"], "edit it", id="options-of-a-version"),
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
    Bounds.load(bounds)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--opset", "7"], "opset=7 is not available", id="opset"),
        pytest.param(["--target", "toaster"], "target='toaster' is unknown", id="target"),
        pytest.param(["--form", "clip", "--dtype", "int8"], "form='clip' is not available in int8", id="together"),
        pytest.param(["--form", "clip"], "expected tensor granularity", id="bounds"),
        pytest.param(["--inspect", "--form", "folded"], "is not available with inspect=True", id="inspect"),
        pytest.param(["--dtype", "int8"], "--dtype int8 is fitted to data", id="int8-without-data"),
        pytest.param(
            ["--mean", "0", "--std", "0", "--fold-normalization"],
            "--std 0: expected numbers above 0",
            id="normalisation",
        ),
    ],
)
def test_options_are_looked_at_before_the_model(bounds: Path, unit_fast, arguments: list[str], says: str) -> None:
    result = unit_fast("export", "-m", "absent.pt2", "-b", bounds, "--input-shape", "1x8x8", *arguments)

    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1, "nothing is said of work that was begun"
    assert not result.stdout


def test_an_input_that_nobody_names(bounds: Path, unit_fast) -> None:
    result = unit_fast("export", "-m", "nets:net", "--weights", "weights.pth", "-b", bounds)

    assert result.exit_code == 2
    assert "give --data (some real samples, best) or --input-shape" in result.stderr


def test_a_repository_for_a_server(here: Path, bounds: Path, unit_fast) -> None:
    """The server's own schema reads it in tests/export/test_layout.py."""
    arguments = ("export", "-m", "model.pt2", "-b", bounds, *TRITON, *FAST)
    options = ("--max-batch-size", "16", "--preferred-batch-sizes", "4,16", "--queue-delay", "250", "--device", "cpu")

    result = unit_fast(*arguments, *options, "--instances", "3", "--json")

    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["path"] == "repository/net/1/model.onnx"
    config = (here / "repository" / "net" / "config.pbtxt").read_text()
    for line in (
        "max_batch_size: 16",
        "preferred_batch_size: [4, 16]",
        "delay_microseconds: 250",
        "KIND_CPU",
        "count: 3",
    ):
        assert line in config
    onnx.checker.check_model(here / "repository" / "net" / "1" / "model.onnx")

    again = unit_fast(*arguments)
    assert again.exit_code == 2
    assert "is there already" in again.stderr

    second = unit_fast(*arguments, "--new-version", "--json")
    assert second.exit_code == 0, second.stderr
    assert json.loads(second.stdout)["path"] == "repository/net/2/model.onnx"
    assert (here / "repository" / "net" / "config.pbtxt").read_text() == config


def test_the_result_says_forms_size_parity_and_speed_and_draws_the_graph(here: Path, bounds: Path, unit_fast) -> None:
    arguments = ("export", "-m", "model.pt2", "-b", bounds, "-o", "m.onnx", "--graph", "g.svg")
    wide = {"COLUMNS": "200"}

    shown = unit_fast(*arguments, env=wide)
    described = json.loads(unit_fast(*arguments, "--json", "--no-verify").stdout)

    assert shown.exit_code == 0, shown.stderr
    for part in ("min", "Min takes any granularity", "MB", "max rel error", "without clamps, ms", "× ("):
        assert part in shown.stdout
    assert described["size"] == (here / "m.onnx").stat().st_size
    assert [speed["batch"] for speed in described["speed"]] == [1, 16]
    assert all(speed["ratio"] > 0 and speed["plain"]["calls"] >= 5 for speed in described["speed"])
    assert described["graph"] == "g.svg"
    picture = (here / "g.svg").read_text()
    assert picture.count('class="box clamp form-min"') == len(described["sites"]) == 2


def test_the_file_for_this_machine_is_written_beside_the_portable_one(here: Path, bounds: Path, unit_fast) -> None:
    arguments = ("export", "-m", "model.pt2", "-b", bounds, "-o", "m.onnx", "--optimized", "here.onnx", "--json")

    result = unit_fast(*arguments)

    assert result.exit_code == 0, result.stderr
    described = json.loads(result.stdout)["optimized"]
    assert (described["path"], described["clamps"]) == ("here.onnx", 2)
    reordered = [node.op_type for node in onnx.load(here / "here.onnx").graph.node].count("ReorderOutput")
    assert described["in_blocks"] == 2 or reordered == 0  # where there are no blocks
    assert [speed["batch"] for speed in described["speed"]] == [1, 16]
    with np.load(here / "clean.npz") as arrays:
        x = torch.from_numpy(arrays["x"][:5])
    portable, optimized = (OnnxRuntimeModel(here / name) for name in ("m.onnx", "here.onnx"))
    torch.testing.assert_close(optimized(x), portable(x), rtol=1e-5, atol=1e-5)
    assert optimized.metadata["unit_fast.optimized_for"] == described["made_for"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        pytest.param(["--optimized", "here.onnx", "--dtype", "fp16"], "--optimized is for --dtype fp32", id="fp16"),
        pytest.param(["--optimized", "m.onnx"], "--optimized m.onnx is the file that --output", id="same-file"),
    ],
)
def test_what_cannot_be_optimised_is_refused_before_work(
    here: Path, bounds: Path, unit_fast, arguments: list[str], problem: str
) -> None:
    result = unit_fast("export", "-m", "model.pt2", "-b", bounds, "-o", "m.onnx", *arguments)
    assert result.exit_code != 0
    assert problem in " ".join(result.stderr.split())
    assert not (here / "m.onnx").exists()


def test_int8_is_fitted_to_the_data(here: Path, bounds: Path, unit_fast) -> None:
    with np.load(here / "clean.npz") as arrays:
        x = torch.from_numpy(arrays["x"])
    model = sanitize(load_model("model.pt2"), Bounds.load(bounds), x[:2], backend="eager")
    scores = model(x).detach()
    best = scores.topk(2).values
    decided = (best[:, 0] - best[:, 1]).argsort(descending=True)[:48]  # of an untrained net, most are all but ties
    np.savez(here / "decided.npz", x=x[decided].numpy(), y=scores[decided].argmax(1).numpy())
    arguments = ("export", "-m", "model.pt2", "-b", bounds, "-o", "m.onnx", "--data", "decided.npz", *FAST)

    result = unit_fast(*arguments, "--dtype", "int8", "--weight-bits", "7", "--graph", "g.html", "--json")

    assert result.exit_code == 0, result.stderr
    described = json.loads(result.stdout)
    assert described["accuracy"]["samples"] == 48
    assert described["accuracy"]["agreement"] == 1.0
    nodes = [node.op_type for node in onnx.load(here / "m.onnx").graph.node]
    assert "QuantizeLinear" in nodes
    assert "Relu" not in nodes
    forms = [site["form"] for site in described["sites"]]
    picture = (here / "g.html").read_text()
    assert sum(picture.count(f'class="box clamp form-{form.replace(" ", "-")}"') for form in set(forms)) == 2


def test_the_file_can_take_pixels(here: Path, bounds: Path, unit_fast) -> None:
    numbers = ("--mean", "0.4", "--std", "0.2")
    arguments = ("export", "-m", "model.pt2", "-b", bounds, "--data", "clean.npz", *numbers, *FAST)
    with np.load(here / "clean.npz") as arrays:
        x = torch.from_numpy(arrays["x"][:5])

    outside = unit_fast(*arguments, "-o", "outside.onnx")
    inside = unit_fast(*arguments, "-o", "inside.onnx", "--fold-normalization")

    assert (outside.exit_code, inside.exit_code) == (0, 0), outside.stderr + inside.stderr
    expected = OnnxRuntimeModel(here / "outside.onnx")((x - 0.4) / 0.2)
    torch.testing.assert_close(OnnxRuntimeModel(here / "inside.onnx")(x), expected, rtol=1e-5, atol=1e-5)


def test_inspect_adds_the_measure_and_its_thresholds(here: Path, bounds: Path, unit_fast) -> None:
    source = ("-m", "nets:net", "--weights", "weights.pth", "--data", "clean.npz")

    result = unit_fast("export", *source, "-b", bounds, "-o", "m.onnx", "--inspect", "--no-speed", "--json")

    assert result.exit_code == 0, result.stderr
    file = OnnxRuntimeModel(here / "m.onnx")
    assert file.excess == "excess"
    thresholds = json.loads(result.stdout)["thresholds"]
    assert thresholds
    assert {fpr: file.threshold(float(fpr)) for fpr in thresholds} == thresholds
