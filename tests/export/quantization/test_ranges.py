"""Ranges and means of tensors, read from a file over the calibration data."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from tests.runtime.networks import bounds_of
from unit_fast import sanitize
from unit_fast.calibration.samples import SampleStore
from unit_fast.export.quantization.ranges import Range, collect_means, collect_ranges


@pytest.fixture
def doubled(tmp_path: Path) -> Path:
    """y = x + x, for x of shape (N, 2, 40)."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 40]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubled", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_ranges_are_of_all_samples(doubled: Path) -> None:
    images = torch.randn(40, 2, 40, generator=torch.Generator().manual_seed(0))
    images[39, 1, 7] = 8.0
    with SampleStore(images.split(24)) as samples:
        seen = collect_ranges(doubled, ["y"], samples, doubled.with_name("watched.onnx"))

    assert seen == {"y": Range(2 * images.min().item(), 16.0)}


def test_means_are_by_channel_over_samples_and_positions(doubled: Path) -> None:
    images = torch.rand(40, 2, 40, generator=torch.Generator().manual_seed(0))
    with SampleStore(images.split(24)) as samples:
        means = collect_means(doubled, {("y", 1), ("x", -1), ("x", 1)}, samples, doubled.with_name("watched.onnx"))

    torch.testing.assert_close(torch.from_numpy(means["y", 1]), 2 * images.double().mean((0, 2)), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.from_numpy(means["x", -1]), images.double().mean((0, 1)), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.from_numpy(means["x", 1]), images.double().mean((0, 2)), rtol=1e-5, atol=0)


class Difference(nn.Module):
    """Takes one dict of two tensors of the same shape, which must not be mixed up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.head(torch.relu(self.left(x["left"]) - self.right(x["right"])))


def test_dicts_in_another_order_than_the_examples_are_not_mixed_up() -> None:
    drawn = {"left": torch.rand(64, 4), "right": 40 * torch.randn(64, 4)}
    model, example = Difference().eval(), ({name: rows[:2] for name, rows in drawn.items()},)
    bounds = bounds_of(model, example, most=20.0)
    swapped = {name: drawn[name] for name in ("right", "left")}
    quantised = [
        sanitize(model, bounds, example, backend="onnxruntime", dtype="int8", calibration_data=[((x,), None)])
        for x in (drawn, swapped)
    ]
    outputs = [fast(drawn) for fast in quantised]
    assert torch.equal(*outputs)
    expected = sanitize(model, bounds, example, backend="eager")(drawn)
    assert float((outputs[0] - expected).abs().max() / expected.abs().max()) < 0.05
