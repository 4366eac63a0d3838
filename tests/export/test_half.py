"""Exports in float16: bounds never exceeded, inputs and outputs in float32, and refusals."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.export.models import bounds_for, made_bounds, make
from tests.export.random_nets import DrawnBounds, DrawnNet, RandomCase
from tests.properties import examples
from unit_fast.bounds import Granularity
from unit_fast.errors import ParityError
from unit_fast.export import ExportError, OnnxRuntimeModel, export_onnx, parity
from unit_fast.export.flat import evaluate_sites
from unit_fast.export.forms import Clamp
from unit_fast.export.half import in_half, round_down
from unit_fast.export.reference import Case
from unit_fast.runtime import sanitize


@examples(200)
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


class Encoder(nn.Module):
    """Attention as torch has it: tokens come first while its linear layers run."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 5))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # (N, 6, 8) -> (N, 5)
        y = self.norm(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        return self.mlp(x + y).mean(1)


def test_attention_survives_the_optimiser_of_onnxruntime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, tokens = Encoder().eval(), torch.randn(4, 6, 8)
    bounds = bounds_for(model, tokens, "channel")

    report = export_onnx(model, bounds, tmp_path / "m.onnx", example_input=tokens, precision="fp16")

    assert report.parity is not None
    assert {check.optimized for check in report.parity.checks} == {False, True}


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    model, images = make("small")
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 1e5

    with pytest.raises(ExportError, match=r"0\.weight holds 1e\+05, and float16 ends at 65504"):
        export_onnx(
            model, bounds_for(model, images, "tensor"), tmp_path / "m.onnx", example_input=images, precision="fp16"
        )
    assert not list(tmp_path.iterdir())


class Reflected(nn.Module):
    """A sum of two convolutions, which normalisation by a small std drives far past its bound."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
        self.b = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 16, 16) -> (N, 28)
        return torch.relu(self.a(x) + self.b(x)).flatten(1)[:, ::37]


@pytest.mark.parametrize("seed", [0, 1])
def test_inputs_that_cancel_beyond_float16_are_held_to_bounds_alone(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    model, images = Reflected().eval(), torch.rand(4, 3, 16, 16)
    bounds = bounds_for(model, images, "channel")

    report = export_onnx(
        model, bounds, tmp_path / "m.onnx", example_input=images, precision="fp16", form="folded",
        normalization=([0.4, 0.5, 0.6], [0.2, 0.3, 0.1]),
    )  # fmt: skip

    assert report.parity is not None
    assert {f"×100 inputs, batch {batch}" for batch in (1, 2, 7)} <= {*report.parity.skipped}
    assert {check.inputs for check in report.parity.checks} >= {"ordinary"}


def test_a_float16_file_that_differs_is_refused_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make("small")
    monkeypatch.setattr(parity, "TOLERANCES", {"fp16": 1e-9})
    monkeypatch.setattr(parity, "ROUNDING", 0.0)

    with pytest.raises(ParityError, match=r"ordinary inputs.* differs by .* use precision=\"fp32\", or form=\"min\""):
        export_onnx(model, made_bounds("small", "channel"), tmp_path / "m.onnx", example_input=images, precision="fp16")


def test_bounds_are_looked_at_where_values_are_not_compared() -> None:
    case = Case("×100", 1, (), {}, {"relu": torch.zeros(1, 3)}, {}, compared=False)
    clamp = Clamp("relu", "min", "", "Min", None, np.asarray(1.0, np.float32))
    comparison = parity._Comparison({"relu": "clamped"}, [clamp], "fp16")

    for found in ([0.5, 0.0, 1.01], [0.5, 0.0, math.nan]):
        runner = SimpleNamespace(input_names=(), run=lambda _, found=found: {"clamped": torch.tensor([found])})
        with pytest.raises(ParityError, match=r"site relu, ×100 inputs, batch 1.*(exceeds its bound by 0.01|NaN)"):
            comparison.check_all([case], runner, runner, "here", True)
    runner = SimpleNamespace(input_names=(), run=lambda _: {"clamped": torch.tensor([[0.5, 0.0, 1.0]])})
    assert comparison.check_all([case], runner, runner, "here", True) == []
