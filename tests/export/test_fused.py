"""Whether runtimes fuse the clamps that count on it, and the comparison in OpenVINO."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.export.models import bounds_for, made_bounds, make
from unit_fast.errors import ParityError
from unit_fast.export import FusionWarning, export_onnx, fused, pipeline
from unit_fast.export.forms import Clamp
from unit_fast.export.fused import warn_of_unfused
from unit_fast.export.openvino_model import OpenVinoModel

needs_openvino = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)


class Wide(nn.Module):
    """A block as wide as ONNX Runtime's channel blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 8, 8) -> (N, 32, 8, 8)
        y = torch.relu(self.stem(x))
        return self.last(torch.relu(y + self.conv(y)))


def wide_export(folder: Path, target: str) -> tuple[Path, tuple[Clamp, ...], list[warnings.WarningMessage]]:
    torch.manual_seed(0)
    model, images = Wide().eval(), torch.randn(2, 3, 8, 8)
    made: list[tuple[Clamp, ...]] = []
    sound = pipeline.lower
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(pipeline, "lower", lambda *args: made.append(sound(*args)) or made[0])
        report = export_onnx(
            model, bounds_for(model, images, "channel"), folder / "m.onnx", example_input=images, target=target
        )
    return report.path, made[0], caught


@pytest.mark.parametrize("target", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_what_auto_chooses_is_fused_by_the_runtime_that_is_installed(target: str, tmp_path: Path) -> None:
    file, clamps, caught = wide_export(tmp_path, target)

    assert {clamp.op for clamp in clamps} == ({"Clip", "HardSigmoid"} if target == "onnxruntime" else {"Clip"})
    counted = fused._counting_on_fusion(onnx.load(file), target, clamps)
    assert len(counted) == (2 if target == "onnxruntime" else 1)
    assert not [entry for entry in caught if issubclass(entry.category, FusionWarning)]


def test_a_fusion_that_does_not_happen_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, clamps, _ = wide_export(tmp_path, "onnxruntime")
    names = {node.name for node in onnx.load(file).graph.node}
    monkeypatch.setattr(fused, "_onnxruntime_nodes", lambda _: names)

    with pytest.warns(FusionWarning, match=r"2 of 2 clamps run as operators of their own in the onnxruntime"):
        warn_of_unfused(file, "onnxruntime", clamps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unfused(file, "tensorrt", clamps)


@needs_openvino
def test_openvino_runs_the_file_and_is_held_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make("small")
    bounds = made_bounds("small", "channel")
    report = export_onnx(model, bounds, tmp_path / "m.onnx", example_input=images)

    assert report.parity is not None
    assert "openvino" in report.parity.runtime
    checks = [check for check in report.parity.checks if check.runtime == "openvino"]
    assert {check.batch for check in checks} == {1, 2, 7}
    assert {check.inputs for check in checks} == {"ordinary", "×10"}

    sound = OpenVinoModel.run
    monkeypatch.setattr(
        OpenVinoModel,
        "run",
        lambda self, inputs: {name: value * 1.001 for name, value in sound(self, inputs).items()},
    )
    with pytest.raises(ParityError, match=r"batch 1, OpenVINO: .*(differs by|exceeds)"):
        export_onnx(model, bounds, tmp_path / "other.onnx", example_input=images)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


@needs_openvino
def test_a_hard_sigmoid_with_a_beta_of_zero_is_not_what_openvino_computes(tmp_path: Path) -> None:
    """Why ``BETA`` is not 0. Once this fails, OpenVINO is mended, and BETA may become 0."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 2] x) => (float[n, 2] y)
           { y = HardSigmoid<alpha = 1.0, beta = 0.0>(x) }"""
    )
    onnx.save(model, tmp_path / "m.onnx")
    found = OpenVinoModel(tmp_path / "m.onnx").run({"x": np.asarray([[0.25, 0.0]], np.float32)})
    assert found["y"].tolist() == [[0.75, 0.5]]
