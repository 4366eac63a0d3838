"""export_onnx, whole: every architecture and granularity, and everything that must be refused."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.export.models import bounds_for, made_bounds, make
from unit_fast.bounds import Bounds, Granularity
from unit_fast.errors import BackendUnavailableError
from unit_fast.export import (
    OnnxRuntimeModel,
    SaturationWarning,
    export_onnx,
)
from unit_fast.processor import weight_bits
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
    assert (
        set(report.forms.values()) == {"tensor": {"clip"}, "channel": {"min", "folded"}, "neuron": {"min"}}[granularity]
    )
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
    assert sum(check.runtime == "onnxruntime" for check in report.parity.checks) == 18
    assert report.parity.agreement == 1
    assert [site.site for site in report.sites] == list(bounds)
    assert report.size == report.path.stat().st_size
    assert report.sha256 == hashlib.sha256(report.path.read_bytes()).hexdigest()


def test_the_file_is_clean_and_says_where_it_came_from(tmp_path: Path) -> None:
    model, images = make("resnet")
    bounds = made_bounds("resnet", "channel")

    export_onnx(model, bounds, tmp_path / "model.onnx", example_input=images, form="min", opset=19)

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


class Twice(nn.Module):
    """Activates the same values in two branches, as pre-activation networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3, 2), nn.Conv2d(6, 8, 3, 2)
        self.one, self.other = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 9, 9) -> (N, 8)
        y = self.stem(x)
        return (self.left(self.one(y)) * self.right(self.other(y))).mean((2, 3))


@pytest.mark.filterwarnings("ignore:.*run in float:unit_fast.export.FusionWarning")  # int8: of two scales one is left
@pytest.mark.parametrize(
    ("form", "granularity", "precision"),
    [
        *(("min", "neuron", "fp32"), ("clip", "tensor", "fp32"), ("mul_clip", "channel", "fp32")),
        *(("folded", "channel", "fp32"), ("auto", "neuron", "fp16"), ("auto", "channel", "int8")),
    ],
)
def test_sites_that_activate_the_same_values_keep_bounds_of_their_own(
    form: str, granularity: Granularity, precision: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, images = Twice().eval(), torch.randn(64, 3, 9, 9)
    bounds = bounds_for(model, images, granularity, 0.7)
    halved = {name: bound * (0.5 if name == "other" else 1.0) for name, bound in bounds.items()}
    bounds = replace(bounds, tensors=halved)
    in_int8 = {"calibration_data": [images], "weight_bits": weight_bits()} if precision == "int8" else {}

    report = export_onnx(
        model, bounds, tmp_path / "twice.onnx", example_input=images, form=form, precision=precision, **in_int8
    )

    expected = sanitize(model, bounds, images, backend="eager")(images)
    (name,) = OnnxRuntimeModel(report.path).input_names
    (found,) = OnnxRuntimeModel(report.path).run({name: images.numpy()}).values()
    allowed = {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.1}[precision]
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed * float(expected.abs().max()))


class BothSigns(nn.Module):
    """CReLU: what a ReLU takes in is read by another operator too, and given out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, 3, 9, 9) -> (N, 5), (N, 4, 7, 7)
        y = self.stem(x)
        return self.head(torch.cat([torch.relu(y), torch.relu(-y)], 1).mean((2, 3))), y


@pytest.mark.filterwarnings("ignore::unit_fast.export.FusionWarning")
@pytest.mark.parametrize(("form", "granularity"), [("clip", "tensor"), ("mul_clip", "channel"), ("min", "neuron")])
def test_what_an_activation_takes_in_may_be_read_elsewhere(form: str, granularity: Granularity, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = BothSigns().eval(), torch.randn(4, 3, 9, 9)
    bounds = bounds_for(model, images, granularity, 0.5)

    report = export_onnx(model, bounds, tmp_path / "signs.onnx", example_input=images, form=form)

    (name,) = OnnxRuntimeModel(report.path).input_names
    found = OnnxRuntimeModel(report.path).run({name: images.numpy()}).values()
    expected = sanitize(model, bounds, images, backend="eager")(images)
    torch.testing.assert_close(tuple(found), expected, rtol=1e-4, atol=1e-5)


class Windows(nn.Module):
    """Attention within windows, over five dimensions, and over all tokens, over three."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(8, 24), nn.Linear(8, 4), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:  # (N, 3 windows, 5 tokens, 8) -> (N, 4)
        q, k, v = self.up(x).unflatten(-1, (3, 2, 4)).permute(3, 0, 4, 1, 2, 5)  # (N, 2 heads, 3, 5, 4) each
        attended = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.4)
        y = self.act(attended.permute(0, 2, 3, 1, 4).reshape(x.shape[0], 15, 8))
        return self.down(nn.functional.scaled_dot_product_attention(y, y, y, is_causal=True)).mean(1)


def test_attention_over_three_and_five_dimensions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, tokens = Windows().eval(), torch.randn(2, 3, 5, 8)
    bounds = bounds_for(model, tokens, "neuron", 0.7)

    report = export_onnx(model, bounds, tmp_path / "windows.onnx", example_input=tokens)

    (name,) = OnnxRuntimeModel(report.path).input_names
    more = torch.randn(6, 3, 5, 8)
    (found,) = OnnxRuntimeModel(report.path).run({name: more.numpy()}).values()
    torch.testing.assert_close(found, sanitize(model, bounds, tokens, backend="eager")(more), rtol=0, atol=1e-5)
