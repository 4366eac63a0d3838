"""What the export refuses, and that nothing is left behind when it does."""

import errno
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from tests.export.models import Small, bounds_for, made_bounds, make
from unit_fast.bounds import Granularity
from unit_fast.errors import BackendUnavailableError, BoundsMismatchError, ParityError, UnitFastError
from unit_fast.export import (
    ExportError,
    OnnxRuntimeModel,
    export_onnx,
    pipeline,
)
from unit_fast.export.forms.form import Clamp
from unit_fast.runtime import sanitize


def drop_clamp(model: ir.Model, site: str) -> None:
    node = next(node for node in model.graph if node.name == f"{site}/clamp")
    node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def change_limit(model: ir.Model, site: str) -> None:
    value = next(value for name, value in model.graph.initializers.items() if name == f"{site}/bound")
    value.const_value = ir.tensor(np.nextafter(value.const_value.numpy(), np.float32(1e9), dtype=np.float32))


def make_vector_clip(model: ir.Model, site: str) -> None:
    node = next(node for node in model.graph if node.name == f"{site}/clamp")
    upper = node.inputs[-1]
    assert upper is not None
    lower = ir.Value(name="zero", const_value=ir.tensor(np.zeros((), np.float32)))
    model.graph.register_initializer(lower)
    clip = ir.Node("", "Clip", [node.inputs[0], lower, upper], num_outputs=1, name=node.name)
    clip.outputs[0].name = f"{site}/clamped_"
    model.graph.insert_before(node, clip)
    node.outputs[0].replace_all_uses_with(clip.outputs[0], replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def bypass_clamp(model: ir.Model, site: str) -> None:
    node = next(node for node in model.graph if node.name == f"{site}/clamp")
    reader, index = node.outputs[0].uses()[0]
    extra = ir.Node("", "Max", [node.inputs[0], node.outputs[0]], num_outputs=1, name="bypass")
    model.graph.insert_before(reader, extra)
    reader.replace_input_with(index, extra.outputs[0])


def change_weight(model: ir.Model, _site: str) -> None:
    value = next(value for name, value in model.graph.initializers.items() if name.startswith("2."))
    weight = value.const_value.numpy().copy()
    weight.reshape(-1)[0] += 0.01
    value.const_value = ir.tensor(weight)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(drop_clamp, r"site 3: expected one Min node .*, found none", id="lost-min"),
        pytest.param(change_limit, r"site 3: the file's limit .* differs from the stored bound", id="limit"),
        pytest.param(make_vector_clip, r"site 3: expected one Min node", id="vector-clip"),
        pytest.param(bypass_clamp, r"site 3: 1 nodes read the activation past its clamp", id="bypass"),
        pytest.param(change_weight, r"ordinary inputs, batch 1.*differs by", id="weight"),
    ],
)
def test_a_damaged_export_raises_and_leaves_what_was_there(
    damage: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = make("small")
    bounds = made_bounds("small", "channel")
    path = tmp_path / "model.onnx"
    path.write_text("the file of yesterday")
    sound = pipeline.lower

    def lower(*args: Any) -> tuple[Clamp, ...]:
        exported: ir.Model = args[0]
        clamps = sound(*args)
        damage(exported, "3")
        return clamps

    monkeypatch.setattr(pipeline, "lower", lower)

    with pytest.raises(ParityError, match=message):
        export_onnx(model, bounds, path, example_input=images, form="min")

    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "the file of yesterday"


@pytest.mark.parametrize("scale", [1.5, 0.5], ids=["too-loose", "too-tight"])
def test_bounds_that_only_bind_on_large_inputs_are_verified_there(
    scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A translation that takes wrong bounds along is consistent in itself; only saturating parity can tell."""
    model, images = make("small")
    bounds = made_bounds("small", "neuron", 3.0)
    bounds = replace(bounds, tensors={name: bound.clamp_min(1.0) for name, bound in bounds.items()})
    sound = pipeline.translate

    def translate(*args: Any) -> Any:
        exported, site_bounds = sound(*args)
        wrong = tuple(replace(entry, bound=entry.bound * np.float32(scale)) for entry in site_bounds)
        return exported, wrong

    monkeypatch.setattr(pipeline, "translate", translate)

    with pytest.raises(ParityError, match=r"site 1, ×10 inputs, batch 1"):
        export_onnx(model, bounds, tmp_path / "model.onnx", example_input=images[:1])

    assert not list(tmp_path.iterdir())


def test_clip_refuses_bounds_of_more_than_one_value(tmp_path: Path) -> None:
    model, images = make("small")

    with pytest.raises(ExportError, match=r"site 1: its bound has the shape \(4, 1, 1\).*tensor granularity"):
        export_onnx(
            model,
            made_bounds("small", "channel"),
            tmp_path / "model.onnx",
            example_input=images,
            form="clip",
        )

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"form": "folding"}, "the forms are: auto, clip, min, mul_clip, folded", id="form"),
        pytest.param({"precision": "int4"}, "the precisions are: fp32.*int8", id="precision"),
        pytest.param({"opset": 17}, "expected one from 18 to 24", id="opset"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, images = make("small")

    with pytest.raises(ExportError, match=message):
        export_onnx(model, made_bounds("small", "tensor"), tmp_path / "m.onnx", example_input=images, **options)


def test_bounds_of_another_model_are_refused(tmp_path: Path) -> None:
    _, images = make("small")
    torch.manual_seed(1)
    other = Small().eval()

    with pytest.raises(BoundsMismatchError, match="another model"):
        export_onnx(other, made_bounds("small", "tensor"), tmp_path / "model.onnx", example_input=images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_models_in_other_dtypes_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    model, images = make("small")
    model, images = model.to(dtype), images.to(dtype)

    with pytest.raises(ExportError, match=rf"is {dtype}.*model\.float\(\)"):
        export_onnx(model, bounds_for(model, images, "tensor"), tmp_path / "m.onnx", example_input=images)


class Autocast(nn.Module):
    """Computes its convolution in bfloat16, whatever its caller does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 8, 8) -> (N, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = torch.relu(self.conv(x))
        return y.float().mean((2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bounds-bfloat16", "bounds-float32"])
def test_a_model_with_autocast_inside_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    model, images = Autocast().eval(), torch.randn(2, 3, 8, 8)
    bounds = bounds_for(model, images, "channel")
    bounds = replace(bounds, tensors={name: bound.to(dtype) for name, bound in bounds.items()})

    with pytest.raises(ExportError, match=r"computes in torch\.bfloat16, by torch\.autocast"):
        export_onnx(model, bounds, tmp_path / "m.onnx", example_input=images)


@pytest.mark.parametrize("place", ["missing/model.onnx", "."], ids=["no-folder", "is-folder"])
def test_an_unwritable_place_is_known_before_the_work(place: str, tmp_path: Path) -> None:
    model, images = make("small")
    bounds = made_bounds("small", "tensor")

    with pytest.raises(UnitFastError, match="cannot write"):
        export_onnx(model, bounds, tmp_path / place, example_input=images)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    model, images = make("small")
    tmp_path.chmod(0o500)

    with pytest.raises(UnitFastError, match="cannot write"):
        export_onnx(model, made_bounds("small", "tensor"), tmp_path / "m.onnx", example_input=images)


def test_large_models_keep_their_tensors_in_a_file_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make("resnet")
    bounds = made_bounds("resnet", "neuron")
    monkeypatch.setattr(pipeline, "EXTERNAL_ABOVE", 1000)

    report = export_onnx(model, bounds, tmp_path / "model.onnx", example_input=images)

    assert report.external_data is not None
    assert re.fullmatch(r"model\.onnx\.[0-9a-f]{12}\.data", report.external_data.name)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", report.external_data.name]
    assert report.size == sum(entry.stat().st_size for entry in tmp_path.iterdir())
    reference = sanitize(model, bounds, images, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(OnnxRuntimeModel(report.path)(images), reference(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("granularity", "options", "op", "count"),
    [
        pytest.param("neuron", {}, "Min", 5, id="min"),
        pytest.param("tensor", {"target": "generic"}, "Clip", 5, id="clip"),
        pytest.param("channel", {"form": "mul_clip"}, "Clip", 5, id="mul_clip"),
        pytest.param("channel", {"form": "folded", "target": "generic"}, "Clip", 5, id="folded"),
        pytest.param("channel", {"form": "folded"}, "HardSigmoid", 2, id="folded-behind-sums"),
    ],
)
def test_an_optional_optimiser_leaves_every_clamp_in_place(
    granularity: Granularity, options: dict[str, Any], op: str, count: int, tmp_path: Path
) -> None:
    onnxslim = pytest.importorskip("onnxslim", reason="onnxslim is not installed")
    model, images = make("resnet")
    bounds = made_bounds("resnet", granularity)
    report = export_onnx(model, bounds, tmp_path / "m.onnx", example_input=images, verify=False, **options)

    slim = onnxslim.slim(str(report.path))

    assert sum(node.op_type == op for node in slim.graph.node) == count
    onnx.checker.check_model(slim, full_check=True)
    onnx.save(slim, tmp_path / "slim.onnx")
    reference = sanitize(model, bounds, images, backend="eager")
    with torch.no_grad():
        found = OnnxRuntimeModel(tmp_path / "slim.onnx").run({"x": images.numpy() * 30})["output"]
        torch.testing.assert_close(found, reference(images * 30), rtol=1e-4, atol=1e-4)


def test_missing_onnx_is_told_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make("small")
    bounds = made_bounds("small", "tensor")
    monkeypatch.setitem(sys.modules, "unit_fast.export.pipeline", None)

    with pytest.raises(BackendUnavailableError, match=r"unit_fast\[onnx\]"):
        export_onnx(model, bounds, tmp_path / "model.onnx", example_input=images)


@pytest.mark.parametrize("step", ["save", "load"])
def test_a_full_disk_leaves_nothing(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make("small")

    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pipeline.onnx if step == "load" else pipeline.ir, step, full)

    with pytest.raises(UnitFastError, match=r"cannot write .*m\.onnx: No space left on device"):
        export_onnx(model, made_bounds("small", "tensor"), tmp_path / "m.onnx", example_input=images)

    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make("small")

    def interrupt(*_args: Any, **_kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "check_parity", interrupt)

    with pytest.raises(KeyboardInterrupt):
        export_onnx(model, made_bounds("small", "tensor"), tmp_path / "m.onnx", example_input=images)

    assert not list(tmp_path.iterdir())
