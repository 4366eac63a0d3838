"""export_onnx, whole: every architecture and granularity, and everything that must be refused."""

import hashlib
import os
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
from unit_fast.bounds import Bounds, Granularity
from unit_fast.errors import BackendUnavailableError, BoundsMismatchError, ParityError, UnitFastError
from unit_fast.export import (
    ExportError,
    OnnxRuntimeModel,
    SaturationWarning,
    export_onnx,
    pipeline,
)
from unit_fast.export.forms.form import Clamp
from unit_fast.runtime import sanitize


def edited(bounds: Bounds, changes: dict[str, float]) -> Bounds:
    """The same bounds, with those of the named sites set to one value."""
    tensors = {
        name: torch.full_like(bound, changes[name]) if name in changes else bound for name, bound in bounds.items()
    }
    return replace(bounds, tensors=tensors)


def with_hooks(model: nn.Module, bounds: Bounds) -> nn.Module:
    """The sanitised model, made without any of our code: every site is a module of that name."""
    for name, bound in bounds.items():
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, limit=bound: torch.minimum(output, limit)
        )
    return model


@pytest.mark.parametrize("granularity", ["tensor", "channel", "neuron"])
def test_the_file_computes_the_clamped_model(granularity: Granularity, tmp_path: Path) -> None:
    model, images = make("vgg")
    bounds = made_bounds("vgg", granularity)

    report = export_onnx(model, bounds, tmp_path / "vgg.onnx", example_input=images)
    run = OnnxRuntimeModel(report.path, threads=1)

    expected = with_hooks(model, bounds)
    for batch in (images[:1] * 30, images[:5], images * 10):
        with torch.no_grad():
            torch.testing.assert_close(run(batch), expected(batch), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(run(images * 10), make("vgg")[0](images * 10), atol=0.1)
    assert set(report.forms.values()) == {"clip" if granularity == "tensor" else "min"}
    assert all(site.reached for site in report.sites)


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        ("resnet", "tensor"),
        ("resnet", "neuron"),
        ("mobilenet", "tensor"),
        ("mobilenet", "channel"),
        ("vit", "channel"),
        ("dense", "neuron"),
    ],
)
def test_every_architecture_agrees_with_the_sanitised_model(
    name: str, granularity: Granularity, tmp_path: Path
) -> None:
    model, images = make(name)
    bounds = made_bounds(name, granularity)

    report = export_onnx(model, bounds, tmp_path / "model.onnx", example_input=images[:1])

    reference = sanitize(model, bounds, images, backend="eager")
    run = OnnxRuntimeModel(report.path, threads=1)
    with torch.no_grad():
        torch.testing.assert_close(run(images * 5), reference(images * 5), rtol=1e-4, atol=2e-5)
    assert report.parity is not None
    assert report.parity.batches == (1, 2, 7)
    assert len(report.parity.checks) == 18
    assert report.parity.agreement == 1
    assert [site.site for site in report.sites] == list(bounds)
    assert report.size == report.path.stat().st_size
    assert report.sha256 == hashlib.sha256(report.path.read_bytes()).hexdigest()


def test_the_file_is_clean_and_says_where_it_came_from(tmp_path: Path) -> None:
    model, images = make("resnet")
    bounds = made_bounds("resnet", "channel")

    export_onnx(model, bounds, tmp_path / "model.onnx", example_input=images, opset=19)

    file = onnx.load(tmp_path / "model.onnx")
    metadata = {entry.key: entry.value for entry in file.metadata_props}
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", 19)]
    assert metadata["unit_fast.bounds_sha256"] == bounds.sha256
    assert metadata["unit_fast.model_sha256"] == bounds.fingerprint.sha256
    assert metadata["unit_fast.torch"] == torch.__version__
    assert metadata["unit_fast.granularity"] == "channel"
    assert metadata["unit_fast.forms"] == '{"min": 5}'
    assert "relative error at most" in metadata["unit_fast.parity"]
    assert not any(node.metadata_props or node.doc_string for node in file.graph.node)
    content = (tmp_path / "model.onnx").read_bytes()
    for private in (str(Path.cwd()), "site-packages", ".py", "stack_trace", "tests.export"):
        assert private.encode() not in content, private
    names = [node.name for node in file.graph.node]
    assert {f"{site}/clamp" for site in bounds} < set(names)
    assert {"blocks.0.relu_1", "relu"} < set(names)
    dimensions = [value.type.tensor_type.shape.dim for value in (*file.graph.input, *file.graph.output)]
    assert [[dim.dim_param or dim.dim_value for dim in dims] for dims in dimensions] == [
        ["batch", 3, 8, 8],
        ["batch", 5],
    ]


def test_the_same_export_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first.onnx", "second.onnx"):
        model, images = make("mobilenet")
        export_onnx(model, made_bounds("mobilenet", "channel"), tmp_path / name, example_input=images)

    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


class Siamese(nn.Module):
    """Two inputs, nested outputs of which two are the same tensor and one is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, left: Tensor, output: Tensor) -> dict[str, Any]:
        features = self.body(left) + self.body(output)
        return {"logits": self.head(features), "features": (features, [features, output, None])}


@pytest.mark.parametrize("as_keywords", [False, True], ids=["positional", "keywords"])
def test_several_inputs_and_nested_outputs_come_back_as_they_were(as_keywords: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Siamese().eval()
    left, right = torch.randn(5, 4), torch.randn(5, 4)
    example = {"output": right, "left": left} if as_keywords else (left, right)
    bounds = bounds_for(model, example, "neuron", fraction=0.5)

    export_onnx(model, bounds, tmp_path / "model.onnx", example_input=example)
    run = OnnxRuntimeModel(tmp_path / "model.onnx", threads=1)

    reference = sanitize(model, bounds, example, backend="eager")
    with torch.no_grad():
        expected = reference(output=right, left=left) if as_keywords else reference(left, right)
        found = run(left=left, output=right)
    assert sorted(run.input_names) == ["left", "output"]
    assert run.output_names == ("logits", "features_0", "features_1_0", "features_1_1")
    torch.testing.assert_close(found["logits"], expected["logits"])
    torch.testing.assert_close(found["features"][0], expected["features"][0])
    torch.testing.assert_close(found["features"][1][0], expected["features"][1][0])
    torch.testing.assert_close(found["features"][1][1], right)
    assert found["features"][1][2] is None
    assert isinstance(found["features"], tuple)
    assert isinstance(found["features"][1], list)


def test_an_activation_may_be_an_output_of_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU()).eval()
    x = torch.randn(5, 4)

    report = export_onnx(model, bounds_for(model, x, "tensor"), tmp_path / "model.onnx", example_input=x)

    assert OnnxRuntimeModel(report.path).output_names == ("output",)
    limit = bounds_for(model, x, "tensor")["1"]
    assert torch.equal(OnnxRuntimeModel(report.path)(x * 50).max(), limit)


def test_an_exported_program_can_be_exported(tmp_path: Path) -> None:
    model, images = make("dense")
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    bounds = bounds_for(program, images, "channel")

    report = export_onnx(program, bounds, tmp_path / "model.onnx", example_input=images)

    assert report.parity is not None


def test_unreached_bounds_are_told(tmp_path: Path) -> None:
    model, images = make("small")
    bounds = edited(made_bounds("small", "tensor"), {"3": 1e9})

    with pytest.warns(SaturationWarning, match=r"1 of 2 sites above their bounds \(3\)"):
        report = export_onnx(model, bounds, tmp_path / "model.onnx", example_input=images)

    assert [site.reached for site in report.sites] == [True, False]


@pytest.mark.parametrize("form", ["auto", "min"])
def test_bounds_at_the_edges_are_kept(form: str, tmp_path: Path) -> None:
    model, images = make("vgg")
    edges = {"features.2": -0.25, "features.6": float("inf"), "classifier.2": 1e-40}
    bounds = edited(made_bounds("vgg", "tensor"), edges)

    report = export_onnx(model, bounds, tmp_path / "model.onnx", example_input=images, form=form)

    scalar = "clip" if form == "auto" else "min"
    assert report.forms == {"features.2": "min", "features.6": "none", "classifier.2": scalar}
    stored = {
        tensor.name: onnx.numpy_helper.to_array(tensor).item()
        for tensor in onnx.load(report.path).graph.initializer
        if tensor.name.startswith("classifier.2/")
    }
    assert np.float32(1e-40) in stored.values()
    with torch.no_grad():
        torch.testing.assert_close(
            OnnxRuntimeModel(report.path)(images), with_hooks(model, bounds)(images), rtol=1e-4, atol=1e-5
        )


def test_verification_can_be_left_out_and_the_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make("small")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    report = export_onnx(
        model, made_bounds("small", "tensor"), tmp_path / "model.onnx", example_input=images, verify=False
    )

    assert report.parity is None
    assert [site.reached for site in report.sites] == [None, None]
    metadata = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    assert metadata["unit_fast.parity"] == "not verified"


def test_verification_is_not_skipped_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make("small")
    bounds = made_bounds("small", "tensor")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(BackendUnavailableError, match=r"unit_fast\[onnxruntime\]"):
        export_onnx(model, bounds, tmp_path / "model.onnx", example_input=images)

    assert not list(tmp_path.iterdir())


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

    def lower(exported: ir.Model, site_bounds: Any, form: str) -> tuple[Clamp, ...]:
        clamps = sound(exported, site_bounds, form)
        damage(exported, "3")
        return clamps

    monkeypatch.setattr(pipeline, "lower", lower)

    with pytest.raises(ParityError, match=message):
        export_onnx(model, bounds, path, example_input=images)

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
        pytest.param({"form": "folding"}, "the forms are: auto, clip, min", id="form"),
        pytest.param({"precision": "int8"}, "the precisions are: fp32", id="precision"),
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


def test_models_in_other_dtypes_are_refused(tmp_path: Path) -> None:
    model, images = make("small")
    model.double()

    with pytest.raises(ExportError, match=r"is torch\.float64.*model\.float\(\)"):
        export_onnx(
            model, bounds_for(model, images.double(), "tensor"), tmp_path / "m.onnx", example_input=images.double()
        )


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

    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert report.external_data == tmp_path / "model.onnx.data"
    assert report.size == sum(entry.stat().st_size for entry in tmp_path.iterdir())
    reference = sanitize(model, bounds, images, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(OnnxRuntimeModel(report.path)(images), reference(images), rtol=1e-4, atol=1e-5)


def test_an_optional_optimiser_leaves_every_clamp_in_place(tmp_path: Path) -> None:
    onnxslim = pytest.importorskip("onnxslim", reason="onnxslim is not installed")
    model, images = make("resnet")
    report = export_onnx(model, made_bounds("resnet", "neuron"), tmp_path / "m.onnx", example_input=images)

    slim = onnxslim.slim(str(report.path))

    assert sum(node.op_type == "Min" for node in slim.graph.node) == 5


def test_missing_onnx_is_told_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make("small")
    bounds = made_bounds("small", "tensor")
    monkeypatch.setitem(sys.modules, "unit_fast.export.pipeline", None)

    with pytest.raises(BackendUnavailableError, match=r"unit_fast\[onnx\]"):
        export_onnx(model, bounds, tmp_path / "model.onnx", example_input=images)
