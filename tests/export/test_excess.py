"""Files that tell how far a sample was driven beyond its bounds say what the sanitised model's ``inspect`` says."""

import dataclasses
import math
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import unit_fast as uf
from tests.export.models import ARCHITECTURES, made_bounds, make
from tests.export.random_nets import DrawnBounds, DrawnNet, RandomCase, drawn_bounds, drawn_nets
from tests.export.test_optimized import needs_blocks
from tests.properties import examples
from tests.runtime.networks import Nested, Steps, Windows, bounds_of, images
from unit_fast.bounds import CleanReadings
from unit_fast.errors import DataError, ParityError
from unit_fast.export import ExportError, OnnxRuntimeModel, export_onnx, optimize_onnx, pipeline, triton_repository
from unit_fast.export.excess import Excess
from unit_fast.export.options import Options
from unit_fast.export.pipeline import export_graph
from unit_fast.fusion.read_clamps import measure_excess
from unit_fast.fusion.rewrite import copy_graph
from unit_fast.runtime import SanitizedModel
from unit_fast.sites import insert_bounds
from unit_fast.threshold import relative_excess, usual_excess


def inspected(model: nn.Module, bounds: uf.Bounds, clean: Tensor, usual: int = 200) -> SanitizedModel:
    """The sanitised model, which knows what is usual from ``usual`` samples."""
    fast = uf.sanitize(model, bounds, clean, backend="eager")
    return fast.fit_threshold([clean.repeat(-(-usual // len(clean)), *[1] * (clean.ndim - 1))[:usual]])


def exported(model: nn.Module, fast: SanitizedModel, x: object, path: Path, **how: object) -> OnnxRuntimeModel:
    export_onnx(model, fast.bounds, path, example_input=x, inspect=True, **how)
    return OnnxRuntimeModel(path)


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """In units of what is usual, of which a thousandth decides nothing."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("granularity", ["neuron", "channel", "tensor"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_file_measures_what_inspect_does(tmp_path: Path, name: str, granularity: str) -> None:
    model, x = make(name)
    fast = inspected(model, made_bounds(name, granularity, 0.5), x)

    file = exported(model, fast, x, tmp_path / "m.onnx")

    for scale in (0.1, 1, 5):
        output, measures = file.inspect(x * scale)
        expected, wanted = fast.inspect(x * scale)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4 * max(expected.abs().max().item(), 1))
        assert_same(measures["excess"], wanted["excess"])
        assert torch.equal(file(x * scale), output)
    assert measures["excess"].min() > 0
    for fpr in (0.1, 0.01):
        assert file.threshold(fpr) == fast.threshold(fpr, "excess")


@pytest.mark.parametrize(("granularity", "whole"), [("neuron", 2), ("channel", 0), ("tensor", 0)])
def test_where_neurons_share_a_bound_no_activation_is_subtracted_from_whole(
    tmp_path: Path, granularity: str, whole: int
) -> None:
    model, x = make("small")
    fast = inspected(model, made_bounds("small", granularity, 0.5), x)

    export_onnx(model, fast.bounds, tmp_path / "m.onnx", example_input=x, inspect=True, verify=False)

    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    clamped = {node.output[0] for node in nodes if node.name.endswith("/clamp")}
    assert sum(node.op_type == "Sub" and node.input[1] in clamped for node in nodes) == whole


@pytest.mark.filterwarnings("ignore::unit_fast.export.errors.SaturationWarning")  # 1e30 is out of reach
@examples(4)
@given(net=drawn_nets(), bounds=drawn_bounds(), form=st.sampled_from(["auto", "min"]))
def test_random_graphs_with_any_bounds_are_measured_alike(
    net: DrawnNet, bounds: DrawnBounds, form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = RandomCase(net)
    learned = case.bounds(bounds)
    reference = insert_bounds(case.captured, dict(learned.items()))
    reading = measure_excess(reference)
    with torch.no_grad():
        _, counts, furthest = reading(case.images)
    learned = dataclasses.replace(learned, readings=CleanReadings(counts, furthest))
    path = tmp_path_factory.mktemp("random") / "model.onnx"
    options = Options(form, "fp32", 20, verify=True, inspect=True)

    export_graph(copy_graph(reference), learned, path, case.images, options)

    with torch.no_grad():
        output, _, furthest = reading(case.images * 3)
    found, measures = OnnxRuntimeModel(path).inspect(case.images * 3)
    torch.testing.assert_close(found, output, rtol=1e-4, atol=1e-4 * max(output.abs().max().item(), 1))
    expected = relative_excess(furthest, usual_excess(learned))
    assert_same(measures["excess"], expected, 1e-4 * max(1.0, expected[expected.isfinite()].max().item()))


@pytest.mark.parametrize("opset", [18, 23])
def test_float16_measures_in_its_own_precision(tmp_path: Path, opset: int) -> None:
    model, x = make("resnet")
    fast = inspected(model, made_bounds("resnet", "neuron", 0.5), x)

    file = exported(model, fast, x, tmp_path / "m.onnx", precision="fp16", opset=opset)

    _, measures = file.inspect(x * 3)
    assert_same(measures["excess"], fast.inspect(x * 3)[1]["excess"], 2e-2)


def test_a_sample_that_is_no_number_raises_an_alarm_and_no_other_does(tmp_path: Path) -> None:
    model, x = make("resnet")
    fast = inspected(model, made_bounds("resnet", "neuron", 2.0), x)
    file = exported(model, fast, x, tmp_path / "m.onnx")
    spoilt = x[:5].clone()
    spoilt[1, 0, 3, 3], spoilt[2, 2, 7, 7], spoilt[4, 1, 0, 0] = math.nan, math.inf, -math.inf

    _, measures = file.inspect(spoilt)

    assert measures["excess"].isinf().tolist() == [False, True, True, False, True]
    assert measures["excess"].isinf().tolist() == fast.inspect(spoilt)[1]["excess"].isinf().tolist()


class Masked(nn.Module):
    """Adds a mask of −inf and 0 before a softmax; its outputs are called as the file would call the measure."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:  # (N, 4), (N, 6) -> (N, 6) twice
        hidden = torch.relu(self.inner(x))
        return {"excess": hidden + 1, "weights": (hidden + mask).softmax(1)}


def test_infinity_is_usual_where_the_example_has_it_and_names_that_are_taken_stay_the_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, mask = Masked().eval(), torch.randn(6, 4), torch.zeros(6, 6)
    mask[:, 2] = -math.inf
    fast = uf.sanitize(model, bounds_of(model, (x, mask)), (x, mask), backend="eager")
    fast.fit_threshold([((x, mask), None)])
    file = exported(model, fast, (x, mask), tmp_path / "m.onnx")
    x = x * 4
    x[3, 0], mask[4, 0] = math.nan, math.nan

    output, measures = file.inspect(x, mask)

    assert (file.output_names, file.excess) == (("excess", "weights", "excess_"), "excess_")
    assert set(output) == {"excess", "weights"}
    assert measures["excess"].isinf().tolist() == [False, False, False, True, True, False]
    assert_same(measures["excess"], fast.inspect(x, mask)[1]["excess"])


def test_an_example_in_channels_last_is_no_obstacle(tmp_path: Path) -> None:
    model, x = make("small")
    fast = inspected(model, made_bounds("small", "neuron", 0.5), x)

    file = exported(model, fast, x.to(memory_format=torch.channels_last), tmp_path / "m.onnx")

    assert_same(file.inspect(x)[1]["excess"], fast.inspect(x)[1]["excess"])


@pytest.mark.filterwarnings("ignore::unit_fast.export.errors.SaturationWarning")
@pytest.mark.parametrize("batch", [1, 3])
def test_rows_of_one_sample_are_measured_together(tmp_path: Path, batch: int) -> None:
    model, x = Windows().eval(), images(6)
    fast = inspected(model, bounds_of(model, x), x)

    _, measures = exported(model, fast, x, tmp_path / "m.onnx").inspect(3 * x[:batch])

    assert measures["excess"].shape == (batch,)
    assert_same(measures["excess"], fast.inspect(3 * x[:batch])[1]["excess"])


def test_steps_in_front_of_the_batch_are_measured_by_sample(tmp_path: Path) -> None:
    model, x = Steps().eval(), images(5)
    fast = inspected(model, bounds_of(model, x), x)
    file = exported(model, fast, x, tmp_path / "m.onnx")
    spoilt = x.clone()
    spoilt[2] *= 50

    excess = file.inspect(spoilt)[1]["excess"]

    assert excess.argmax() == 2
    assert_same(excess[[0, 1, 3, 4]], file.inspect(x)[1]["excess"][[0, 1, 3, 4]])
    assert_same(excess, fast.inspect(spoilt)[1]["excess"])


def test_nested_outputs_stay_as_they_are(tmp_path: Path) -> None:
    model, pair = Nested().eval(), (torch.randn(5, 4), torch.randn(5, 4))
    fast = uf.sanitize(model, bounds_of(model, (pair,)), (pair,), backend="eager").fit_threshold([((pair,), None)])

    file = exported(model, fast, (pair,), tmp_path / "m.onnx")

    output, measures = file.inspect(*pair)
    torch.testing.assert_close(output["sum"], fast(pair)["sum"])
    assert output["parts"][1][1] is None
    assert_same(measures["excess"], fast.inspect(pair)[1]["excess"])


def test_a_site_without_a_finite_bound_has_none_to_exceed(tmp_path: Path) -> None:
    model, x = make("small")
    bounds = made_bounds("small", "neuron", 0.5)
    first, _ = bounds
    half = dataclasses.replace(bounds, tensors={**bounds.tensors, first: torch.full_like(bounds[first], math.inf)})
    fast = inspected(model, half, x)

    file = exported(model, fast, x, tmp_path / "m.onnx")

    assert_same(file.inspect(x)[1]["excess"], fast.inspect(x)[1]["excess"])
    none = dataclasses.replace(fast.bounds, tensors={name: torch.full_like(b, math.inf) for name, b in half.items()})
    with pytest.raises(ExportError, match="none is finite"):
        export_onnx(model, none, tmp_path / "n.onnx", example_input=x, inspect=True)
    assert not (tmp_path / "n.onnx").exists()


def test_images_in_0_1_are_measured_as_normalised_ones(tmp_path: Path) -> None:
    model, x = make("small")
    fast = inspected(model, made_bounds("small", "neuron", 0.5), x)

    file = exported(model, fast, x, tmp_path / "m.onnx", normalization=((0.5, 0.4, 0.3), (0.2, 0.3, 0.2)))

    pixels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.2)))
    assert_same(file.inspect(pixels)[1]["excess"], fast.inspect((pixels - mean) / std)[1]["excess"])


@needs_blocks
def test_optimised_for_a_processor_it_measures_alike_in_the_layout_of_convolutions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = [(3, 32), (32, 20), (20, 16)]
    model = nn.Sequential(*[layer for size in sizes for layer in (nn.Conv2d(*size, 3), nn.ReLU())]).eval()
    x = torch.randn(4, 3, 8, 8)
    fast = inspected(model, bounds_of(model, x, most=0.1), x)
    portable = exported(model, fast, x, tmp_path / "m.onnx")

    report = optimize_onnx(tmp_path / "m.onnx", tmp_path / "here.onnx")

    file = OnnxRuntimeModel(report.path)
    for scale in (1, 3, 100):
        assert_same(file.inspect(scale * x)[1]["excess"], portable.inspect(scale * x)[1]["excess"])
    assert file.threshold(0.01) == portable.threshold(0.01)
    assert report.in_blocks == 3
    operators = [node.op_type for node in onnx.load(report.path).graph.node]
    # 20 channels do not fill their blocks, so both sides of that subtraction are taken out; so is the output.
    assert (operators.count("Sub"), operators.count("ReorderOutput")) == (3, 3)


@needs_blocks
@pytest.mark.parametrize("dims", [(1,), (2, 3), (1, 2, 3)], ids=str)
def test_maxima_of_differences_that_are_the_models_own_stay_what_they_are(
    tmp_path: Path, dims: tuple[int, ...]
) -> None:
    class Maxima(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.first(x), self.second(x)
            return torch.relu(one).mean((1, 2, 3), keepdim=True) + (one - other).amax(dims, keepdim=True)

    torch.manual_seed(0)
    model, x = Maxima().eval(), torch.randn(4, 3, 8, 8)
    export_onnx(model, bounds_of(model, x), tmp_path / "m.onnx", example_input=x)

    report = optimize_onnx(tmp_path / "m.onnx", tmp_path / "here.onnx")

    assert report.in_blocks == 1
    torch.testing.assert_close(OnnxRuntimeModel(report.path)(x), OnnxRuntimeModel(tmp_path / "m.onnx")(x))


def test_an_input_that_holds_nothing_spoils_no_sample(tmp_path: Path) -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 6)

        def forward(self, x: Tensor, past: Tensor) -> Tensor:  # (N, 4), (N, 0, 4) -> (N, 6)
            return torch.relu(self.inner(torch.cat([past, x[:, None]], 1))).mean(1)

    torch.manual_seed(0)
    model, pair = Cached().eval(), (torch.randn(5, 4), torch.empty(5, 0, 4))
    fast = uf.sanitize(model, bounds_of(model, pair), pair, backend="eager").fit_threshold([(pair, None)])

    file = exported(model, fast, pair, tmp_path / "m.onnx")

    assert_same(file.inspect(*pair)[1]["excess"], fast.inspect(*pair)[1]["excess"])


def test_evaluate_finds_the_measure_in_the_file(tmp_path: Path) -> None:
    model, x = make("resnet")
    fast = inspected(model, made_bounds("resnet", "neuron", 0.5), x)
    file = exported(model, fast, x, tmp_path / "m.onnx")
    x, labels = x.abs() / x.abs().max(), torch.arange(8) % 5

    reports = [
        uf.evaluate(run, [(x, labels)], trigger=uf.triggers.Patch(size=3, row=5, col=5, value=1), target=0)
        for run in (file, fast)
    ]

    (found,) = reports[0].detection
    wanted = next(entry for entry in reports[1].detection if entry.measure == "excess")
    assert (found.measure, found.detected, found.auroc) == ("excess", wanted.detected, wanted.auroc)


def test_a_file_without_the_measure_says_so(tmp_path: Path) -> None:
    model, x = make("small")
    export_onnx(model, made_bounds("small", "neuron"), tmp_path / "m.onnx", example_input=x, verify=False)
    file = OnnxRuntimeModel(tmp_path / "m.onnx")

    output, measures = file.inspect(x)

    assert torch.equal(output, file(x))
    assert measures == {}
    with pytest.raises(DataError, match="inspect=True"):
        file.threshold()


def test_thresholds_are_those_that_the_clean_samples_allow(tmp_path: Path) -> None:
    model, x = make("small")
    fast = inspected(model, made_bounds("small", "neuron", 0.5), x, usual=25)

    file = exported(model, fast, x, tmp_path / "m.onnx", verify=False)

    assert file.threshold(0.05) == fast.threshold(0.05, "excess")
    with pytest.raises(DataError, match=r"no threshold for fpr=0.01; expected one of 0.1, 0.05 \("):
        file.threshold(0.01)


def test_a_server_is_told_that_it_is_one_number_a_sample(tmp_path: Path) -> None:
    model, x = make("small")
    fast = inspected(model, made_bounds("small", "neuron", 0.5), x)
    exported(model, fast, x, tmp_path / "m.onnx", verify=False)

    placed = triton_repository(tmp_path / "m.onnx", tmp_path / "small")

    config = (tmp_path / "small" / "config.pbtxt").read_text()
    assert placed
    described = config[config.index('name: "excess"') :]
    assert "reshape { shape: [] }" in described


@pytest.mark.parametrize(
    ("how", "message"),
    [
        pytest.param({"form": "folded"}, "form='folded' is not available with inspect=True", id="folded"),
        pytest.param({"form": "mul_clip"}, "form='mul_clip' is not available with inspect=True", id="mul_clip"),
        pytest.param({"precision": "int8"}, "inspect=True is not available in int8", id="int8"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, how: dict[str, str], message: str) -> None:
    model, x = make("small")

    with pytest.raises(ExportError, match=message):
        export_onnx(model, made_bounds("small", "neuron"), tmp_path / "m.onnx", example_input=x, inspect=True, **how)


def test_bounds_that_do_not_know_what_is_usual_are_refused(tmp_path: Path) -> None:
    model, x = make("small")

    with pytest.raises(DataError, match="no readings of clean samples"):
        export_onnx(model, made_bounds("small", "neuron"), tmp_path / "m.onnx", example_input=x, inspect=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_measures_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make("small")
    fast = inspected(model, made_bounds("small", "neuron", 0.5), x)
    right, calls = pipeline.with_excess, []

    def wrong(graph: object, excess: Excess) -> object:
        calls.append(graph)
        usual = {site: value * (1.0 if len(calls) == 1 else 1.01) for site, value in excess.usual.items()}
        return right(graph, dataclasses.replace(excess, usual=usual))

    monkeypatch.setattr(pipeline, "with_excess", wrong)

    with pytest.raises(ParityError, match="output excess"):
        export_onnx(model, fast.bounds, tmp_path / "m.onnx", example_input=x, inspect=True)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []
