"""Exports in float16: bounds never exceeded, inputs and outputs in float32, and refusals."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.models import bounds_for, made_bounds, make
from tests.export.random_nets import DrawnBounds, DrawnNet, RandomCase
from unit_fast.bounds import Granularity
from unit_fast.export import ExportError, OnnxRuntimeModel, export_onnx
from unit_fast.export.flat import evaluate_sites
from unit_fast.export.half import in_half, round_down
from unit_fast.runtime import sanitize


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(min_value=0, width=32) | st.sampled_from([65504.0, 65505.0, 1e-40, 6e-8, 1.0, 0.1, float("inf")]))
def test_bounds_are_rounded_to_the_next_float16_below(bound: float) -> None:
    rounded = round_down(torch.tensor(bound))

    assert rounded.dtype == torch.float16
    assert rounded.double() <= bound
    if rounded < 65504:
        assert float(np.nextafter(rounded.numpy(), np.float16(np.inf))) > bound


@pytest.mark.parametrize(("name", "granularity"), [("resnet", "channel"), ("dense", "neuron"), ("vit", "channel")])
def test_a_float16_file_agrees_and_is_called_in_float32(name: str, granularity: Granularity, tmp_path: Path) -> None:
    model, images = make(name)
    bounds = made_bounds(name, granularity)

    report = export_onnx(model, bounds, tmp_path / "m.onnx", example_input=images, precision="fp16")

    file = onnx.load(report.path)
    weights = [tensor for tensor in file.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert not weights
    assert {value.type.tensor_type.elem_type for value in (*file.graph.input, *file.graph.output)} == {
        onnx.TensorProto.FLOAT
    }
    expected = sanitize(model, bounds, images, backend="eager")
    with torch.no_grad():
        found, wanted = OnnxRuntimeModel(report.path)(images), expected(images)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() <= 1e-2 * wanted.abs().max()
    assert not torch.equal(found, wanted)


def test_no_activation_exceeds_its_bound_in_float16() -> None:
    case = RandomCase(DrawnNet((("plain", "relu", "chain"), ("grouped", "gelu", "identity")), "mean"))
    bounds = case.bounds(DrawnBounds("neuron", (None,)))
    half = in_half(case.flat(bounds))

    _, _, activations = evaluate_sites(half, (case.images * 20,))

    for site, bound in bounds.items():
        assert (activations[site].double() <= bound.double()).all()
        assert (activations[site].double() >= bound.double() * (1 - 2e-3)).any()


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    model, images = make("small")
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 1e5

    with pytest.raises(ExportError, match=r"0\.weight holds 1e\+05, and float16 ends at 65504"):
        export_onnx(
            model, bounds_for(model, images, "tensor"), tmp_path / "m.onnx", example_input=images, precision="fp16"
        )
    assert not list(tmp_path.iterdir())
