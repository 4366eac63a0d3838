"""Files optimised for the machine at hand compute what the sanitised model does, and are for that machine alone."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given
from onnx import helper, numpy_helper
from torch import nn

from tests.export.models import bounds_for, made_bounds, make
from tests.export.random_nets import JOINED, RESIDUAL, DrawnBounds, DrawnNet, RandomCase, drawn_bounds, drawn_nets
from tests.properties import examples
from unit_fast.errors import DataError, ParityError
from unit_fast.export import ExportError, OnnxRuntimeModel, export_onnx, optimize_onnx, optimized, triton_repository
from unit_fast.export.options import Options
from unit_fast.export.pipeline import export_graph
from unit_fast.files import OutputError
from unit_fast.fusion.rewrite import copy_graph
from unit_fast.sites import insert_bounds

needs_blocks = pytest.mark.skipif(
    "blocks of 1 " in optimized.here(), reason="ONNX Runtime computes convolutions without blocks on this processor"
)


def wide() -> nn.Sequential:
    """Channels that fill no whole number of blocks, and in the end activations that are all above their bounds."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 36, 3), nn.ReLU(), nn.Conv2d(36, 32, 3), nn.ReLU()
    nn.init.constant_(layers[4].bias, 1e3)
    return nn.Sequential(*layers).eval()


def exported(model: nn.Module, images: torch.Tensor, bounds, path: Path) -> Path:
    return export_onnx(model, bounds, path, example_input=images, verify=False).path


@pytest.fixture
def portable(tmp_path: Path) -> Path:
    model, images = make("resnet")
    return exported(model, images, made_bounds("resnet", "neuron"), tmp_path / "model.onnx")


@examples(6)
@given(net=drawn_nets(), bounds=drawn_bounds())
@example(net=JOINED, bounds=DrawnBounds("neuron", (None, 0.0, None, 1e-40)))
@example(net=RESIDUAL, bounds=DrawnBounds("neuron", (None, 0.0, float("inf"), -1.0)))
def test_random_graphs_with_any_bounds_agree(
    net: DrawnNet, bounds: DrawnBounds, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = RandomCase(net)
    learned = case.bounds(bounds)
    reference = insert_bounds(case.captured, dict(learned.items()))
    path = tmp_path_factory.mktemp("random") / "model.onnx"
    export_graph(copy_graph(reference), learned, path, case.images, Options("min", "fp32", 20, verify=False))

    report = optimize_onnx(path, path.with_name("here.onnx"))

    assert report.error is not None
    with torch.no_grad():
        expected = reference(case.images * 3)
        found = OnnxRuntimeModel(report.path)(case.images * 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * max(expected.abs().max().item(), 1))


@needs_blocks
@pytest.mark.parametrize("batch", [1, 3])
def test_clamps_stay_in_the_layout_of_convolutions_and_each_neuron_has_its_own_bound(
    tmp_path: Path, batch: int
) -> None:
    model, images = wide(), torch.randn(4, 3, 8, 8)
    path = exported(model, images, bounds_for(model, images, "neuron"), tmp_path / "model.onnx")
    last = numpy_helper.to_array(next(value for value in onnx.load(path).graph.initializer if value.name == "5/bound"))

    report = optimize_onnx(path, tmp_path / "here.onnx")

    assert (report.clamps, report.in_blocks) == (3, 3)
    operators = [node.op_type for node in onnx.load(report.path).graph.node]
    assert operators == [*["Conv", "Min"] * 3, "ReorderOutput"]
    # What comes out are the bounds themselves, in their places.
    found = OnnxRuntimeModel(report.path)(images[:batch]).numpy()
    assert np.array_equal(found, np.broadcast_to(last, found.shape))


def test_a_clamp_that_a_convolution_would_take_for_its_activation_stays(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal(shape).astype(np.float32) for shape in ((16, 3, 3, 3), (16, 16, 3, 3))]
    bound = generator.standard_normal((16, 6, 6)).astype(np.float32)
    constants = [numpy_helper.from_array(value, name) for name, value in zip("vwb", [*weights, bound], strict=True)]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["y"], "first"),
        helper.make_node("Min", ["y", "b"], ["z"], "clamp"),
        helper.make_node("Conv", ["z", "w"], ["out"], "second"),
    ]
    values = [
        helper.make_tensor_value_info("x", 1, ["n", 3, 8, 8]),
        helper.make_tensor_value_info("out", 1, ["n", 16, 4, 4]),
    ]
    known = [helper.make_tensor_value_info(name, 1, ["n", 16, 6, 6]) for name in "yz"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants, value_info=known)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)

    report = optimize_onnx(path, tmp_path / "here.onnx")

    assert (report.clamps, report.in_blocks) == (1, 0)
    x = torch.randn(2, 3, 8, 8)
    first = torch.conv2d(x, torch.from_numpy(weights[0]))
    expected = torch.conv2d(torch.minimum(first, torch.from_numpy(bound)), torch.from_numpy(weights[1]))
    torch.testing.assert_close(OnnxRuntimeModel(report.path)(x), expected, rtol=1e-4, atol=1e-4)


def test_nodes_need_no_names(tmp_path: Path) -> None:
    model, images = wide(), torch.randn(4, 3, 8, 8)
    path = exported(model, images, bounds_for(model, images, "neuron"), tmp_path / "model.onnx")
    nameless = onnx.load(path)
    for node in nameless.graph.node:
        node.name = ""
    onnx.save(nameless, path)

    report = optimize_onnx(path, tmp_path / "here.onnx")

    assert report.clamps == 3
    torch.testing.assert_close(OnnxRuntimeModel(report.path)(images), OnnxRuntimeModel(path)(images))


class ChannelsLast(nn.Module):
    """An activation between two transpositions, which ONNX Runtime would let meet across it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (N, 3, 16, 16) -> (N, 16, 14, 14)
        return self.second(self.first(x).permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2))


def test_a_transposition_stays_on_its_side_of_a_clamp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = ChannelsLast().eval(), torch.randn(4, 3, 16, 16)
    path = exported(model, images, bounds_for(model, images, "neuron"), tmp_path / "model.onnx")
    report = optimize_onnx(path, tmp_path / "here.onnx")  # compares the two
    assert report.clamps == 1


def test_outputs_are_nested_and_the_origin_is_told_as_before(portable: Path) -> None:
    report = optimize_onnx(portable, portable.with_name("here.onnx"))

    before, after = (OnnxRuntimeModel(path).metadata for path in (portable, report.path))
    assert after == before | {"unit_fast.optimized_for": report.made_for}
    assert onnxruntime.__version__ in report.made_for


def test_the_file_tells_nothing_of_the_machine_and_the_portable_one_stays(portable: Path) -> None:
    original = portable.read_bytes()
    written = optimize_onnx(portable, portable.with_name("here.onnx")).path.read_bytes()
    assert portable.read_bytes() == original
    assert b"/tmp" not in written
    assert str(portable.parent).encode() not in written


def test_another_machine_refuses_the_file(portable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = optimize_onnx(portable, portable.with_name("here.onnx"))
    monkeypatch.setattr(optimized, "here", lambda: "onnxruntime 1.0 on a toaster")
    with pytest.raises(DataError, match=r"was optimised for onnxruntime .*toaster"):
        OnnxRuntimeModel(report.path)
    with pytest.raises(ExportError, match="which the server need not be"):
        triton_repository(report.path, portable.with_name("repository") / "net")


@needs_blocks
def test_a_file_that_computes_something_else_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = wide(), torch.randn(4, 3, 8, 8)
    path = exported(model, images, bounds_for(model, images, "neuron"), tmp_path / "model.onnx")
    in_blocks = optimized._in_blocks
    monkeypatch.setattr(optimized, "_in_blocks", lambda values, block: in_blocks(values[:, ::-1], block))
    with pytest.raises(ParityError, match=r"output output, batch 1.*the optimised file differs by"):
        optimize_onnx(path, tmp_path / "here.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_what_cannot_be_optimised_is_refused(portable: Path) -> None:
    here = portable.with_name("here.onnx")
    with pytest.raises(DataError, match=r"there is no file .*absent\.onnx"):
        optimize_onnx(portable.with_name("absent.onnx"), here)
    portable.with_name("text.onnx").write_text("no model")
    with pytest.raises(DataError, match="is no ONNX model"):
        optimize_onnx(portable.with_name("text.onnx"), here)
    assert not here.exists()
    with pytest.raises(OutputError, match="create the folder"):
        optimize_onnx(portable, portable.with_name("absent") / "here.onnx")
    with pytest.raises(OutputError, match="is the file to be optimised"):
        optimize_onnx(portable, portable)
    portable.with_name("empty.onnx").write_bytes(b"")
    with pytest.raises(DataError, match="is no ONNX model: it has no outputs"):
        optimize_onnx(portable.with_name("empty.onnx"), here)
    optimize_onnx(portable, here, verify=False)
    with pytest.raises(ExportError, match="was optimised already"):
        optimize_onnx(here, portable.with_name("again.onnx"))


def test_only_float32_is_optimised(tmp_path: Path) -> None:
    model, images = make("resnet")
    path = tmp_path / "half.onnx"
    bounds = made_bounds("resnet", "neuron")
    export_onnx(model, bounds, path, example_input=images, precision="fp16", verify=False)
    with pytest.raises(ExportError, match='is in fp16; expected a file of precision="fp32"'):
        optimize_onnx(path, tmp_path / "here.onnx")
