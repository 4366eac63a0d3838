"""The parity check, on files that compute something else, and on references that round or overflow."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.export.models import bounds_for
from unit_fast.capture import capture
from unit_fast.errors import ParityError
from unit_fast.export import ParityResult, SaturationWarning, export_onnx
from unit_fast.export.flat import FlatGraph, flatten_graph, in_dtype
from unit_fast.export.forms import Clamp
from unit_fast.export.parity import CEILINGS, ROUNDING, SINGLE_CEILINGS, _agreement, _compare, check_parity
from unit_fast.export.reference import reference_cases
from unit_fast.sites import insert_bounds

BOUND = 1.5


class Scale(nn.Module):
    """relu(x · 2), then · 3: what the hand-made ONNX files of this module compute, or should."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 2.0))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # (N, 3) -> (N, 3)
        return self.relu(x * self.weight) * 3


def reference(example: Tensor, bound: float = BOUND) -> FlatGraph:
    captured = capture(Scale().eval(), example)
    return flatten_graph(insert_bounds(captured, {"relu": torch.tensor(bound)}), example)


def files(
    folder: Path, *, bound: float = BOUND, gain: float = 3.0, expose: str = "clamped", body: str | None = None
) -> tuple[Path, Path]:
    """The file as it would be handed over, and with the site's activation exposed."""
    text = (
        body
        or f"""
      scaled = Mul(x, two)
      active = Relu(scaled)
      {expose} = Min(active, bound)
      three = Constant<value = float {{{gain}}}>()
      output = Mul({expose}, three)
    """
    )
    paths = []
    for name, outputs in (("plain", "float[n, 3] output"), ("exposed", "float[n, 3] output, float[n, 3] clamped")):
        model = onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 3] x) => ({outputs})
                <float two = {{2.0}}, float bound = {{{bound}}}> {{ {text} }}"""
        )
        paths.append(folder / f"{name}.onnx")
        onnx.save(model, paths[-1])
    return paths[0], paths[1]


def check(example: Tensor, paths: tuple[Path, Path], bound: float = BOUND) -> tuple[ParityResult, dict[str, bool]]:
    clamps = [Clamp("relu", "min", "", "Min", None, np.asarray(bound, np.float32))]
    return check_parity(reference(example, bound), *paths, {"relu": "clamped"}, clamps, "fp32")


SMALL = torch.tensor([[0.1, 0.2, 0.3]])  # relu(2x) stays below the bound until x is scaled by 10


def test_a_right_file_passes_with_every_batch_input_and_optimisation(tmp_path: Path) -> None:
    result, reached = check(SMALL, files(tmp_path))

    assert {(entry.inputs, entry.batch, entry.optimized) for entry in result.checks} == {
        (inputs, batch, optimized)
        for inputs in ("ordinary", "×10", "×100")
        for batch in (1, 2, 7)
        for optimized in (False, True)
    }
    assert (result.max_abs, result.max_rel, result.agreement) == (0.0, 0.0, 1.0)
    assert reached == {"relu": True}
    assert result.runtime.startswith("onnxruntime ")


LOST = """
  scaled = Mul(x, two)
  clamped = Relu(scaled)
  three = Constant<value = float {3.0}>()
  output = Mul(clamped, three)
"""


def test_a_lost_clamp_is_found_where_inputs_saturate(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"site relu, ×10 inputs, batch 1, .*exceeds its bound by 4\.5"):
        check(SMALL, files(tmp_path, body=LOST))


def test_a_clamp_that_is_too_tight_is_found(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"site relu, ×10 inputs, batch 1, .*differs by 0\.01"):
        check(SMALL, files(tmp_path, bound=1.49))


def test_a_bound_one_bit_too_high_is_found(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"exceeds its bound by 1\.19e-07"):
        check(SMALL, files(tmp_path, bound=float(np.nextafter(np.float32(BOUND), np.float32(9)))))


def test_a_wrong_rest_of_the_network_is_found_on_ordinary_inputs(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"output output, ordinary inputs, batch 1, graph optimisation off: differs"):
        check(SMALL, files(tmp_path, gain=3.001))


def test_predictions_may_differ_at_ties_only() -> None:
    expected = torch.tensor([[1.0, 1.001, 0.0], [0.0, 2.0, 1.0]])

    assert _agreement("output y", expected.flip(1).roll(-1, 1), expected, 2.0, "here") == 0.0
    assert _agreement("output y", torch.tensor([[1.0, 0.999, 0], [0, 2, 1]]), expected, 0.01, "here") == 0.5
    with pytest.raises(ParityError, match="output y, here: 1 of 2 predictions differ"):
        _agreement("output y", torch.tensor([[1.0, 0.999, 0], [0, 1, 2]]), expected, 0.01, "here")


def test_a_file_that_does_not_load_or_run_is_a_parity_error(tmp_path: Path) -> None:
    vector = "clamped = Identity(x) shape = Constant<value_ints = [7]>() output = Reshape(x, shape)"
    with pytest.raises(ParityError, match="does not run"):
        check(SMALL, files(tmp_path, body=vector))
    paths = files(tmp_path)
    paths[0].write_bytes(b"")
    with pytest.raises(ParityError, match="does not load"):
        check(SMALL, paths)


def test_a_reference_that_gives_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="the sanitised graph itself gives NaN"):
        check(torch.tensor([[float("nan"), 0.0, 0.0]]), files(tmp_path))


def test_bounds_out_of_reach_warn_with_their_names(tmp_path: Path) -> None:
    with pytest.warns(SaturationWarning, match=r"1 of 1 sites above their bounds \(relu\)"):
        _, reached = check(SMALL, files(tmp_path, bound=1e6), bound=1e6)

    assert reached == {"relu": False}


def test_the_limit_follows_the_rounding_of_the_reference_and_no_further() -> None:
    expected = torch.tensor([[1.0, 2.0]])
    rounding = {"output y": 1e-4}

    absolute, relative, _ = _compare("output y", expected + 3.9e-4, expected, 1e-5, rounding, "here")
    assert absolute == pytest.approx(3.9e-4, rel=1e-2)
    assert relative == pytest.approx(1.95e-4, rel=1e-2)
    with pytest.raises(ParityError, match="output y, here: differs by"):
        _compare("output y", expected + ROUNDING * 1e-4 * 1.01, expected, 1e-5, rounding, "here")


def test_the_rounding_is_the_larger_of_two_orders_of_summation() -> None:
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval(), torch.randn(7, 16, 9, 9)
    graph = flatten_graph(insert_bounds(capture(model, images), {"1": torch.tensor(1.5)}), images)
    was = torch.backends.mkldnn.enabled

    (case,) = [case for case in reference_cases(graph, ["1"], None).cases if str(case) == "ordinary inputs, batch 7"]

    exact = in_dtype(graph, torch.float64).module(images.double())[0]
    errors = {}
    for enabled in (False, True):
        torch.backends.mkldnn.set_flags(_enabled=enabled, _fp32_precision=None)
        errors[enabled] = (graph.module(images)[0].double() - exact).abs().max().item()
    torch.backends.mkldnn.set_flags(_enabled=was, _fp32_precision=None)
    assert torch.backends.mkldnn.enabled == was
    assert errors[False] != errors[True]
    assert case.rounding["output output"] >= max(errors.values())


def test_a_reference_that_rounds_nothing_excuses_one_rounding_of_what_arrives_at_a_clamp() -> None:
    # What leaves it may be (1 + x) - 1 in the file, however lucky torch is: that is off by half an ulp of x.
    images = torch.tensor([[0.75, 3.0], [0.5, 0.25]])
    graph = flatten_graph(insert_bounds(capture(nn.Sequential(nn.ReLU()), images), {"0": torch.tensor(1.5)}), images)

    cases = reference_cases(graph, ["0"], None).cases

    assert {case.name for case in cases} == {"ordinary", "×10", "×100"}
    for case in cases:
        arriving = max(other.inputs[0].abs().max().item() for other in cases if other.name == case.name)
        assert 2**-25 * arriving <= case.rounding["site 0"] <= 2**-24 * arriving
        assert case.rounding["output output"] == 0


def test_no_rounding_of_the_reference_excuses_more_than_the_ceiling() -> None:
    # A reference that draws random numbers would differ from itself in float64 by as much as one likes.
    expected = torch.tensor([[1.0, 2.0]])
    with pytest.raises(ParityError, match="output y, here: differs by"):
        _compare("output y", expected + 2 * CEILINGS["fp32"] * 1.01, expected, 1e-5, {"output y": 1.0}, "here")
    _compare("output y", expected + 2 * CEILINGS["fp32"] * 0.99, expected, 1e-5, {"output y": 1.0}, "here")


def test_activations_may_be_off_singly_by_what_torch_rounds_but_not_on_the_whole() -> None:
    expected = torch.ones(1, 1000)
    rounding = {"site relu": 0.05}
    ceiling = CEILINGS["fp16"]
    single, all_over = expected.clone(), expected + ceiling * 1.01
    single[0, 3] += 0.19

    _, relative, _ = _compare("site relu", single, expected, 1e-2, rounding, "here", None, ceiling)

    assert relative == pytest.approx(0.19)
    with pytest.raises(ParityError, match=r"site relu, here: differs by 0\.0505 in the root mean square"):
        _compare("site relu", all_over, expected, 1e-2, rounding, "here", None, ceiling)
    single[0, 3] = 1 + ROUNDING * 0.05 * 1.01
    with pytest.raises(ParityError, match=r"site relu, here: differs by 0\.202.*expected at most 0\.2"):
        _compare("site relu", single, expected, 1e-2, rounding, "here", None, ceiling)
    with pytest.raises(ParityError, match=r"output y, here: differs by 0\.19.*expected at most 0\.05"):
        _compare("output y", expected + 0.19, expected, 1e-2, {"output y": 0.05}, "here", ceiling)
    single[0, 3] = 1 + 1.1e-3
    with pytest.raises(ParityError, match=r"site relu, here: differs by 0\.0011"):
        _compare("site relu", single, expected, 1e-5, rounding, "here", SINGLE_CEILINGS["fp32"], CEILINGS["fp32"])


def test_the_reference_is_left_as_it_was(tmp_path: Path) -> None:
    graph = reference(SMALL)
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    clamps = [Clamp("relu", "min", "", "Min", None, np.asarray(BOUND, np.float32))]

    check_parity(graph, *files(tmp_path), {"relu": "clamped"}, clamps, "fp32")

    assert {name: tensor.dtype for name, tensor in graph.module.state_dict().items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.module.state_dict().items())


class OwnConstant(nn.Module):
    """Multiplies with a constant that is float32 whatever the weights are: it does not run in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3) -> (N, 2)
        return torch.relu(self.fc(x)) @ torch.full((3, 2), 0.5, device=x.device)


def test_a_reference_that_cannot_run_in_float64_is_held_to_the_tolerance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model, x = OwnConstant().eval(), torch.randn(3, 3)
    bounds = bounds_for(model, x, "neuron")

    with caplog.at_level("INFO", logger="unit_fast.export.reference"):
        report = export_onnx(model, bounds, tmp_path / "model.onnx", example_input=x)

    assert "does not run in float64" in caplog.text
    assert report.parity is not None
    assert report.parity.max_rel < 1e-5
