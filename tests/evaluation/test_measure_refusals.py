"""What evaluate() cannot measure it refuses, with the batch and the way out."""

import pytest
import torch
from torch import Tensor

from tests.evaluation.pixel_reader import CLASSES, LABELS, SEEN, STAMP, PixelReader, data
from unit_fast.errors import DataError
from unit_fast.evaluation import evaluate


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        pytest.param([], "the loader gave no samples", id="empty"),
        pytest.param([torch.rand(2, 3, 4, 4)], r"batch 0: expected \(x, y\), found Tensor", id="no labels"),
        pytest.param(
            [(torch.rand(2, 3, 4, 4),)], r"found tuple of 1; accuracy needs labels", id="a tuple without labels"
        ),
        pytest.param([(torch.rand(2, 3, 4, 4), None)], "batch 0: y: expected a tensor", id="None for labels"),
        pytest.param(
            [*data(SEEN, LABELS), *data([0], [5])], "batch 3: label 5 is out of range, .* 0 to 4", id="label too high"
        ),
        pytest.param(data([0], [-1]), "batch 0: labels must be 0 or more, found -1", id="negative label"),
        pytest.param([(torch.rand(2, 3, 4, 4), torch.tensor([0.0, 1.0]))], "found torch.float32", id="float labels"),
        pytest.param([(torch.rand(2, 3, 4, 4), torch.eye(5).long()[:2])], r"argmax\(1\)", id="one-hot labels"),
        pytest.param(
            [(torch.rand(2, 3, 4, 4), torch.tensor([0]))], "1 labels for inputs of shape", id="too few labels"
        ),
        pytest.param(data([3, 3], [3, 3]), "no sample is of another class than its target", id="target class only"),
        pytest.param(
            [(torch.rand(2, 7), torch.tensor([0, 1]))], r"\(N, C, H, W\), found shape \(2, 7\)", id="no images"
        ),
        pytest.param([(torch.randn(2, 3, 4, 4) * 9, torch.tensor([0, 1]))], "preprocess=", id="normalised already"),
    ],
)
def test_bad_data_is_refused(loader, message):
    def model(x: Tensor) -> Tensor:
        return torch.zeros(len(x), CLASSES)

    with pytest.raises(DataError, match=message):
        evaluate(model, loader, trigger=STAMP, target=3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(lambda x: torch.full((len(x), 5), torch.nan), "model, batch 0: the output has NaN", id="NaN"),
        pytest.param(
            lambda x: torch.where(x[:, 0, -1, -1:] == 1, torch.nan, torch.zeros(len(x), 5)),
            "model, triggered batch 0: the output has NaN",
            id="NaN on triggered samples",
        ),
        pytest.param(
            lambda x: torch.zeros(len(x)), r"expected logits \(3, classes\), found \(3,\)", id="one number a sample"
        ),
        pytest.param(lambda x: torch.zeros(len(x), 5, 2, 2), "found \\(3, 5, 2, 2\\)", id="a map a sample"),
        pytest.param(lambda _: torch.zeros(1, 5), "found \\(1, 5\\)", id="too few rows"),
        pytest.param(lambda x: torch.zeros(len(x), 5 + len(x)), "classes as before", id="a changing number of classes"),
        pytest.param(lambda x: {"a": x}, "found dict; pick them from the output with logits=", id="dict"),
        pytest.param(7, "expected something that can be called", id="no function"),
    ],
)
def test_bad_outputs_are_refused(model, message):
    with pytest.raises(DataError, match=message):
        evaluate(model, data(SEEN, LABELS), trigger=STAMP, target=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"trigger": STAMP}, "trigger= is given without target=", id="no target"),
        pytest.param({"target": 3}, "target= is given without trigger=", id="no trigger"),
        pytest.param({"trigger": "patch", "target": 3}, "see triggers.parse", id="trigger as text"),
        pytest.param(
            {"trigger": STAMP, "target": 5}, "class 5 is out of range, the model has classes 0 to 4", id="high"
        ),
        pytest.param({"trigger": STAMP, "target": -1}, "found -1", id="negative"),
        pytest.param({"trigger": STAMP, "target": True}, "found True", id="a boolean"),
        pytest.param({"trigger": STAMP, "target": "3"}, "or 'all-to-all', found '3'", id="text"),
        pytest.param({"trigger": STAMP, "target": lambda y: y[:1]}, r"must return 3 classes, found \(1,\)", id="short"),
        pytest.param(
            {"trigger": STAMP, "target": lambda y: y + 4}, "class 6 is out of range", id="function out of range"
        ),
        pytest.param(
            {"trigger": lambda x: x[:1], "target": 3},
            r"expected a batch \(3, 3, 4, 4\) torch.float32 back",
            id="trigger shape",
        ),
        pytest.param(
            {"trigger": lambda x: (x * 255).byte(), "target": 3},
            r"torch.float32 back, found .* torch.uint8",
            id="dtype",
        ),
        pytest.param({"class_names": ["a", "b"]}, "expected 5 names, .* found 2", id="names"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        evaluate(PixelReader(), data(SEEN, LABELS), **settings)
