"""Files that normalise their input, compared with the model on normalised images."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.export.models import bounds_for
from unit_fast.export import ExportError, Normalization, OnnxRuntimeModel, export_onnx
from unit_fast.runtime import sanitize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Net(nn.Module):
    """A convolution that pads or not, and a head."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = stem, nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 9, 9) -> (N, 4)
        return self.head(torch.relu(self.stem(x)).mean((2, 3)))


class Twice(Net):
    """Reads the same weights twice, so that they cannot be changed."""

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 9, 9) -> (N, 4)
        return self.head((torch.relu(self.stem(x)) + torch.relu(self.stem(x.flip(3)))).mean((2, 3)))


STEMS = {
    "unpadded": (Net, nn.Conv2d(3, 6, 3), []),
    "strided-no-bias": (Net, nn.Conv2d(3, 6, 3, 2, bias=False), []),
    "grouped": (Net, nn.Conv2d(3, 6, 3, groups=3), []),
    "valid": (Net, nn.Conv2d(3, 6, 3, padding="valid"), []),
    "padded": (Net, nn.Conv2d(3, 6, 3, padding=1), ["Sub"]),
    "same": (Net, nn.Conv2d(3, 6, 3, padding="same"), ["Sub"]),
    "shared": (Twice, nn.Conv2d(3, 6, 3), ["Sub", "Mul"]),
}


@pytest.mark.parametrize("kind", STEMS)
def test_the_file_takes_images_that_are_not_normalised(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, stem, left = STEMS[kind]
    model, pixels = net(stem).eval(), torch.rand(4, 3, 9, 9)
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (MEAN, STD))
    images = (pixels - mean) / std
    bounds = bounds_for(model, images, "channel")

    report = export_onnx(
        model, bounds, tmp_path / "m.onnx", example_input=images, form="min", normalization=(MEAN, STD)
    )

    file = onnx.load(report.path)
    assert [node.op_type for node in file.graph.node if node.op_type in ("Sub", "Mul")] == left
    recorded = {entry.key: entry.value for entry in file.metadata_props}["unit_fast.normalization"]
    assert json.loads(recorded) == {"mean": [*MEAN], "std": [*STD]}
    reference = sanitize(model, bounds, images, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(OnnxRuntimeModel(report.path)(pixels), reference(images), rtol=1e-4, atol=1e-5)


def test_normalisation_goes_together_with_folding_and_float16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, pixels = Net(nn.Conv2d(3, 6, 3)).eval(), torch.rand(4, 3, 9, 9)
    images = (pixels - 0.5) / 0.25
    bounds = bounds_for(model, images, "channel")

    report = export_onnx(
        model,
        bounds,
        tmp_path / "m.onnx",
        example_input=images,
        precision="fp16",
        normalization=Normalization((0.5,), (0.25,)),
    )

    assert set(report.forms.values()) == {"folded"}
    assert not [node for node in onnx.load(report.path).graph.node if node.op_type in ("Sub", "Mul")]
    reference = sanitize(model, bounds, images, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(OnnxRuntimeModel(report.path)(pixels), reference(images), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.0,), "stds above 0"),
        ((float("nan"),), (1.0,), "finite means"),
        ((0.5, 0.5), (1.0, 1.0, 1.0), "one number each, or one a channel"),
        ((), (), "one number each"),
        ((0.5,) * 4, (1.0,), "has 4 numbers, the input 3 channels"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    mean: tuple[float, ...], std: tuple[float, ...], message: str, tmp_path: Path
) -> None:
    model, images = Net(nn.Conv2d(3, 6, 3)).eval(), torch.rand(2, 3, 9, 9)

    with pytest.raises(ExportError, match=message):
        export_onnx(
            model,
            bounds_for(model, images, "tensor"),
            tmp_path / "m.onnx",
            example_input=images,
            normalization=(mean, std),
        )


@pytest.mark.parametrize("given", [0.5, (0.5,), (0.5, None), (0.1, 0.2, 0.3), ("a", "b"), (0.5, torch.tensor(0.2))])
def test_what_is_no_mean_and_std_is_refused(given: Any) -> None:
    with pytest.raises(
        ExportError, match=r"normalization=.*: expected \(mean, std\), each one number or one a channel"
    ):
        Normalization.of(given)


def test_one_number_stands_for_all_channels() -> None:
    assert Normalization.of((0.5, [0.2, 0.3])) == Normalization((0.5,), (0.2, 0.3))
    assert Normalization.of(((0.5, 0.1), 1)) == Normalization((0.5, 0.1), (1.0,))


def test_only_images_can_be_normalised(tmp_path: Path) -> None:
    model, rows = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(3, 4)

    with pytest.raises(ExportError, match="whose one input is"):
        export_onnx(
            model,
            bounds_for(model, rows, "tensor"),
            tmp_path / "m.onnx",
            example_input=rows,
            normalization=((0.5,), (1.0,)),
        )
