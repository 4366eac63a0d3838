"""int8 from the model to the file: within its bounds to the bit, joined by the runtime, and close to float32."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tests.export.models import bounds_for, make
from unit_fast.bounds import Bounds, Granularity
from unit_fast.errors import DataError, ParityError
from unit_fast.export import ExportError, ExportReport, OnnxRuntimeModel, export_onnx
from unit_fast.export.errors import FusionWarning
from unit_fast.export.quantization import insert
from unit_fast.export.quantization.verification import warn_of_float_layers
from unit_fast.processor import weight_bits
from unit_fast.runtime import sanitize


@cache
def prepared(name: str, granularity: Granularity) -> tuple[nn.Module, Bounds, Tensor]:
    """A network, bounds that bind on its 256 images, and the images."""
    model, _ = make(name)
    images = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return model, bounds_for(model, images, granularity), images


def export_int8(name: str, granularity: Granularity, folder: Path, **options: Any) -> ExportReport:
    """Without the comparison in float32, which other tests are about; int8 is verified in any case."""
    model, bounds, images = prepared(name, granularity)
    return export_onnx(
        model,
        bounds,
        folder / "model.onnx",
        example_input=images[:8],
        precision="int8",
        calibration_data=images.split(64),
        verify=False,
        **options,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> "Exported":
    """Exports by network and granularity, each made once."""

    @cache
    def export(name: str, granularity: Granularity, weight_bits: int = 8) -> ExportReport:
        return export_int8(name, granularity, tmp_path_factory.mktemp("int8"), weight_bits=weight_bits)

    return export


Exported = Callable[..., ExportReport]


def optimised(path: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime really runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        ("vgg", "neuron"), ("mobilenet", "neuron"), ("vit", "neuron"), ("dense", "channel"),
        ("resnet", "neuron"), ("resnet", "channel"), ("resnet", "tensor"),
    ],
)  # fmt: skip
def test_int8_stays_close_to_the_sanitised_model(name: str, granularity: Granularity, exported: Exported) -> None:
    report = exported(name, granularity, weight_bits())

    model, bounds, images = prepared(name, granularity)
    reference = sanitize(model, bounds, images[:2], backend="eager")
    with torch.no_grad():
        expected = reference(images)
    found = OnnxRuntimeModel(report.path, threads=1)(images)
    decibels = 10 * ((expected - expected.mean(0)).pow(2).mean() / (found - expected).pow(2).mean()).log10().item()
    assert decibels > 20
    assert report.accuracy is not None
    assert report.accuracy.samples == 256
    assert report.accuracy.signal_to_noise == pytest.approx(decibels, abs=0.1)
    agreement = (found.argmax(1) == expected.argmax(1)).double().mean().item()
    assert report.accuracy.agreement == pytest.approx(agreement)
    assert [site.site for site in report.sites] == list(bounds)


def test_nothing_is_left_between_convolutions_where_the_scale_is_the_bound(exported: Exported) -> None:
    report = exported("resnet", "tensor")

    operators = optimised(report.path)
    assert set(report.forms.values()) == {"scale"}
    assert operators["QLinearConv"] == 6
    assert operators["QLinearAdd"] == 2
    assert operators["QGemm"] == 1
    assert not operators.keys() & {"Conv", "Add", "Gemm", "Relu", "Clip", "Min"}
    assert operators["QuantizeLinear"] + operators["DequantizeLinear"] == 1, "the input"


def test_bounds_by_channel_are_folded_into_the_scales(exported: Exported) -> None:
    report = exported("resnet", "channel")

    operators = optimised(report.path)
    # Behind the sum with the identity, whose channels have other bounds, folding would take a product.
    assert report.forms == {
        "relu": "scale",
        "blocks.0.relu": "scale",
        "blocks.0.relu_1": "integer min",
        "blocks.1.relu": "scale",
        "blocks.1.relu_1": "scale",
    }
    assert operators["Min"] == 1
    assert not operators.keys() & {"Conv", "Add", "Gemm", "Relu", "Clip", "Mul"}
    scales = {
        tensor.name: numpy_helper.to_array(tensor).item()
        for tensor in onnx.load(report.path).graph.initializer
        if tensor.name in ("relu/scale", "blocks.0.relu/scale")
    }
    assert list(scales.values()) == pytest.approx([1 / 255, 1 / 255])


def test_an_integer_min_is_all_that_neuron_bounds_leave_between_convolutions(exported: Exported) -> None:
    report = exported("resnet", "neuron")

    operators = optimised(report.path)
    assert set(report.forms.values()) == {"integer min"}
    assert operators["QLinearConv"] == 6
    assert operators["QLinearAdd"] == 2
    assert operators["Min"] == 5
    assert not operators.keys() & {"Conv", "Add", "Gemm", "Relu", "Clip"}
    assert operators["QuantizeLinear"] + operators["DequantizeLinear"] == 1


@pytest.mark.parametrize("granularity", ["neuron", "tensor"])
@pytest.mark.parametrize("optimize", [False, True], ids=["as-written", "optimised"])
def test_no_activation_exceeds_its_bound_by_a_bit(
    granularity: Granularity, optimize: bool, exported: Exported, tmp_path: Path
) -> None:
    report = exported("resnet", granularity)
    _, bounds, images = prepared("resnet", granularity)
    model = onnx.load(report.path)
    names = {site: f"{site}/clamped" for site in bounds}
    for name in names.values():
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    exposed = tmp_path / "exposed.onnx"
    onnx.save(model, exposed)

    run = OnnxRuntimeModel(exposed, threads=1, optimize=optimize)
    found = run.run({"x": (images[:16] * 4).numpy()})

    for site, name in names.items():
        assert (found[name] <= bounds[site]).all(), site
        assert (found[name] >= bounds[site] * 0.97).any(), f"{site}: nothing reached the bound"


def test_the_same_export_gives_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    again = export_int8("dense", "channel", tmp_path)

    assert again.path.read_bytes() == exported("dense", "channel").path.read_bytes()


def test_labels_give_accuracy_before_and_after_and_the_file_says_so(tmp_path: Path) -> None:
    model, bounds, images = prepared("resnet", "channel")
    with torch.no_grad():
        scores = sanitize(model, bounds, images[:2], backend="eager")(images)
    # Every fourth label is wrong, and no score of this untrained network is nearly another's.
    clear = scores.topk(2, 1).values.diff(dim=1).abs()[:, 0] > 0.1 * scores.std()
    images, labels = images[clear], scores[clear].argmax(1)
    labels[::4] = (labels[::4] + 1) % 5
    loader = list(zip(images.split(50), labels.split(50), strict=True))

    report = export_onnx(
        model,
        bounds,
        tmp_path / "model.onnx",
        example_input=images[:4],
        precision="int8",
        calibration_data=iter(loader),
        verify=False,
    )

    assert report.accuracy is not None
    assert report.accuracy.accuracy_before == pytest.approx(0.75, abs=0.01)
    found = OnnxRuntimeModel(report.path, threads=1)(images).argmax(1)
    assert report.accuracy.accuracy_after == pytest.approx((found == labels).double().mean().item())
    metadata = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    assert metadata["unit_fast.precision"] == "int8"
    assert f"{len(images)} calibration samples" in metadata["unit_fast.int8"]
    assert report.size < 40_000
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(report.path).graph.initializer]
    assert max(weight.size for weight in weights if weight.dtype == np.float32) <= 64, "scales only"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(None, "needs calibration_data: batches of", id="missing"),
        pytest.param([torch.zeros(8, 3, 8, 8)], "holds 8 samples; int8 needs at least 32", id="too-few"),
        pytest.param([torch.full((40, 3, 8, 8), float("nan"))], "NaN or infinite", id="nan"),
        pytest.param([torch.zeros(40, 5, 8, 8)], r"takes \(N, 3, 8, 8\)", id="shape"),
        pytest.param([((torch.zeros(40, 3, 8, 8), torch.zeros(40)), None)], "the model takes input", id="inputs"),
        pytest.param(5, "calibration_data is a int; expected batches of", id="a-number"),
        pytest.param([torch.zeros(20, 3, 8, 8)] * 2, "all 40 samples are alike", id="zeros"),
        pytest.param([torch.randn(1, 3, 8, 8)] * 40, "all 40 samples are alike", id="one-sample"),
        pytest.param([torch.randn(40, 3, 8, 8) * 1e30], r"reaches .*e\+30 in input, example_input only", id="range"),
        pytest.param(
            [(torch.randn(40, 3, 8, 8), torch.arange(40) % 7)],
            "batch 0, sample 5: label 5 is out of range",
            id="labels",
        ),
    ],
)
def test_unusable_calibration_data_is_refused(data: Any, message: str, tmp_path: Path) -> None:
    model, images = make("small")

    with pytest.raises(DataError, match=message):
        export_onnx(
            model,
            bounds_for(model, images, "tensor"),
            tmp_path / "model.onnx",
            example_input=images,
            precision="int8",
            calibration_data=data,
        )

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"form": "clip"}, "scales and integers clamp", id="form"),
        pytest.param({"weight_bits": 4}, "expected 8 or 7", id="bits"),
        pytest.param({"precision": "fp32"}, "leave it out", id="precision"),
    ],
)
def test_options_that_int8_does_not_have_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model, images = make("small")
    given: dict[str, Any] = {"precision": "int8", "calibration_data": [images]} | options

    with pytest.raises(ExportError, match=message):
        export_onnx(model, bounds_for(model, images, "tensor"), tmp_path / "m.onnx", example_input=images, **given)


def test_int8_that_changes_too_many_predictions_is_refused(tmp_path: Path) -> None:
    """One weight a million times the others: the rest of its channel rounds to nothing."""
    model, images = make("small")
    last = model[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight[:, 0] = 1e6
    images = torch.randn(64, 3, 8, 8)

    with pytest.raises(ParityError, match=r"int8 changes the class of .* expected at most 5%"):
        export_onnx(
            model,
            bounds_for(model, images, "neuron"),
            tmp_path / "model.onnx",
            example_input=images[:8],
            precision="int8",
            calibration_data=[images],
        )

    assert not list(tmp_path.iterdir())


def test_a_runtime_that_leaves_layers_in_float_is_told(exported: Exported, tmp_path: Path) -> None:
    report = exported("resnet", "neuron")
    model = onnx.load(report.path)
    # A second reader of what a convolution gives: its quantiser no longer stands alone behind it.
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    model.graph.output.append(onnx.helper.make_tensor_value_info(convolution.output[0], onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "watched.onnx")

    with pytest.warns(FusionWarning, match="1 layers with int8 weights run in float"):
        warn_of_float_layers(tmp_path / "watched.onnx", tmp_path / "optimised.onnx")


def test_biases_take_back_what_rounded_weights_shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    images = torch.rand(64, 3, 8, 8) + 1
    bounds = bounds_for(model.eval(), images, "channel", 1.0)
    options = {"example_input": images[:8], "precision": "int8", "calibration_data": images.split(32), "verify": False}
    with torch.no_grad():
        expected = model(images).mean(0)

    shifts = []
    for name in ("corrected", "as_they_were"):
        report = export_onnx(model, bounds, tmp_path / f"{name}.onnx", weight_bits=7, **options)
        shifts.append((OnnxRuntimeModel(report.path)(images).mean(0) - expected).abs().max())
        monkeypatch.setattr(insert, "mean_shift", lambda *given: np.zeros(len(given[2])))

    assert shifts[0] < 0.5 * shifts[1]


class Crossed(nn.Module):
    """A convolution and a linear layer that read the same tensor, each along another axis."""

    def __init__(self) -> None:
        super().__init__()
        self.along, self.across, self.head = nn.Conv1d(6, 4, 3, padding=1), nn.Linear(10, 10), nn.Linear(100, 3)

    def forward(self, x: Tensor) -> Tensor:  # (N, 6, 10) -> (N, 3)
        x = torch.relu(x)
        return self.head(torch.cat([torch.relu(self.along(x)), torch.relu(self.across(x))], 1).flatten(1))


def test_layers_may_read_one_tensor_along_several_axes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, samples = Crossed().eval(), torch.randn(64, 6, 10)
    report = export_onnx(
        model, bounds_for(model, samples, "tensor"), tmp_path / "m.onnx", example_input=samples[:4], precision="int8",
        calibration_data=samples.split(32), verify=False,
    )  # fmt: skip
    with torch.no_grad():
        expected = model(samples)
    assert (OnnxRuntimeModel(report.path)(samples) - expected).abs().max() < 0.1 * expected.abs().max()


class Unequal(nn.Module):
    """A join of two branches, of which the second reaches twenty times as far."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(8, 5, 6)
        with torch.no_grad():
            for tensor in self.far.parameters():
                tensor.mul_(20)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 8, 8) -> (N, 5)
        return self.head(torch.cat([torch.relu(self.near(x)), torch.relu(self.far(x))], 1)).flatten(1)


def test_a_join_reaches_as_far_as_its_widest_branch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Unequal().eval(), torch.randn(64, 3, 8, 8)
    report = export_onnx(
        model, bounds_for(model, images, "tensor", 1.0), tmp_path / "m.onnx", example_input=images[:4],
        precision="int8", calibration_data=images.split(32), verify=False, weight_bits=weight_bits(),
    )  # fmt: skip
    with torch.no_grad():
        expected = model(images)
    assert (OnnxRuntimeModel(report.path)(images) - expected).abs().max() < 0.1 * expected.abs().max()
