"""Layers on the CPU: compared with float64 before they are timed, held against ceilings of their own footprint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import layers
from benchmarks.layer_calls import Operands, compiled, eager, operands_of
from benchmarks.layers import PROVIDERS, Case, Effort, build, planned
from benchmarks.roofline import CpuCeilings, bytes_moved, flops
from benchmarks.shapes import Layer
from tests.runtime.networks import needs_compiler
from unit_fast.timing import Failure, Timing, burst

LAYER = Layer(
    "conv2d", (6, 9, 9), (8, 6, 3, 3), (8, 9, 9), padding=(1, 1), residual=True, act="relu", bounded=True,
    networks=(("a", 3),),
)  # fmt: skip
CEILINGS = CpuCeilings(peak=1e9, copies=((1000, 8e9), (100_000, 4e9), (10_000_000, 2e9)))


@needs_compiler
def test_a_compiled_layer_clamps_as_the_eager_one_does() -> None:
    given = operands_of(LAYER, 2, "cpu", torch.float32, seed=0)
    again = operands_of(LAYER, 2, "cpu", torch.float32, seed=1)
    other = Operands(again.x, given.weight, given.packed, given.bias, again.residual, given.bound)
    with torch.no_grad():
        run = compiled(LAYER, given)
        for operands in (given, other):
            expected = eager(LAYER, operands)
            torch.testing.assert_close(run(operands), expected, rtol=1e-5, atol=1e-5)
            assert (expected == given.bound).any()


def test_a_wrong_provider_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROVIDERS, "eager", (True, lambda layer, given: lambda: eager(layer, given) + 1e-3))
    with pytest.raises(AssertionError, match=r"eager: conv2d 6x9x9 .* is off by"):
        build("eager", (Case(LAYER, 2),))
    monkeypatch.setitem(PROVIDERS, "eager", (False, PROVIDERS["unclamped eager"][1]))
    assert list(build("eager", (Case(LAYER, 2),))) == [f"{LAYER.name} batch 2"]


def test_only_layers_with_a_bound_are_planned_each_once() -> None:
    cases = planned(Effort(cases=(("resnet20_32", 1), ("resnet20_32", 4))))
    assert {case.batch for case in cases} == {1, 4}
    assert all(case.layer.bounded for case in cases)
    assert len({str(case) for case in cases}) == len(cases)
    assert sum(dict(case.layer.networks)["resnet20_32"] for case in cases if case.batch == 1) == 19
    assert len(planned(Effort(cases=(("resnet20_32", 1),), most=2))) == 2


def test_a_row_holds_times_against_the_roofline_of_its_own_footprint() -> None:
    timing = Timing(median=2e-3, p20=1e-3, p80=3e-3, calls=7)
    row = layers.row(Case(LAYER, 4), {"sanitised": timing}, CEILINGS)
    moved = bytes_moved(LAYER, 4, 4)
    assert 1000 < moved < 100_000
    assert row["roofline_microseconds"] == pytest.approx(1e6 * max(moved / 4e9, flops(LAYER, 4) / 1e9))
    assert row["share_of_roofline"]["sanitised"] == pytest.approx(row["roofline_microseconds"] / 2000)
    assert row["providers"]["sanitised"] == {
        "median": pytest.approx(2000), "p20": pytest.approx(1000), "p80": pytest.approx(3000), "calls": 7,
    }  # fmt: skip
    assert row["networks"] == {"a": 3}


def test_what_is_written_has_every_provider_and_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interleaved(contenders: dict[str, Any], *, rounds: int, seconds: float, progress: Any) -> dict[str, Any]:  # noqa: ARG001
        found: dict[str, Any] = {}
        for name, make in contenders.items():
            if "compile" in name or name == "sanitised":
                found[name] = Failure("no compiler")
            else:
                found[name] = {case: Timing.of(burst(call, seconds)) for case, call in make().items()}
        return found

    monkeypatch.setattr(layers, "interleaved", interleaved)
    monkeypatch.setattr(layers.roofline, "cpu_ceilings", lambda: CEILINGS)
    layers.run(Effort(rounds=1, seconds=0.001, cases=(("resnet20_32", 1),), most=2), tmp_path)
    figures = json.loads((tmp_path / "layers_cpu.json").read_text())["figures"]
    assert figures["failed"] == {"unclamped compile": "no compiler", "sanitised": "no compiler"}
    assert [set(row["providers"]) for row in figures["rows"]] == [{"unclamped eager", "eager"}] * 2
    assert figures["ceilings"]["bandwidth"] == 2e9
