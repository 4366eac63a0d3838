"""The exported file in ONNX Runtime, by form; ``benchmarks.export`` has each alone in its process and int8."""

from pathlib import Path

import pytest
import torch

import unit_fast as uf
from benchmarks.conftest import Measure
from benchmarks.models import make, make_bounds
from benchmarks.roofline import work_of
from benchmarks.shapes import layers_of
from unit_fast.export import OnnxRuntimeModel

FORMS = {"clip": "tensor", "folded": "channel", "mul_clip": "channel", "min": "neuron"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 16])
def test_export(measure: Measure, tmp_path: Path, batch: int, form: str) -> None:
    """ResNet-18 for images of 32×32."""
    model, example = make("resnet18_32")
    bounds = make_bounds(model, example, FORMS[form])  # type: ignore[arg-type]
    uf.export_onnx(model, bounds, tmp_path / "model.onnx", example_input=example, form=form)
    x = example[torch.arange(batch) % len(example)]
    with torch.no_grad():
        expected = uf.sanitize(model, bounds, example, backend="eager")(x)
    run = OnnxRuntimeModel(tmp_path / "model.onnx")
    moved, operations = work_of(layers_of("resnet18_32"), batch, 4)
    measure(
        lambda: run(x),
        expected,
        group=f"ONNX Runtime, batch {batch}",
        provider=form,
        within=1e-3,
        bytes_moved=moved,
        flops=operations,
    )
