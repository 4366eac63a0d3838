"""The simulated times, against sums worked out by hand."""

import json
from pathlib import Path

import pytest

from benchmarks import simulation
from benchmarks.results_file import NotMeasured
from benchmarks.roofline import Ceilings, CpuCeilings
from benchmarks.shapes import Layer
from benchmarks.simulation import PLANS, layer_seconds, network_seconds

# 4 samples of 8 channels of 5×5 in, 16 of 5×5 out: bytes of one float each.
LAYER = Layer("conv2d", (8, 5, 5), (16, 8, 1, 1), (16, 5, 5), residual=True, act="relu", bounded=True)
READ, WEIGHTS, OUT, BOUND = 4 * 200, 16 * 8 + 16, 4 * 400, 400
MEMORY = Ceilings(bandwidth=1.0, peak=1e30)


@pytest.mark.parametrize(
    ("plan", "elements", "kernels"),
    [
        ("unclamped eager", READ + WEIGHTS + OUT + 3 * OUT + 2 * OUT, 3),
        ("eager + clamp", READ + WEIGHTS + OUT + 3 * OUT + 2 * OUT + 2 * OUT + BOUND, 4),
        ("unclamped compile", READ + WEIGHTS + OUT + 3 * OUT, 2),
        ("compile", READ + WEIGHTS + OUT + 3 * OUT + BOUND, 2),
        ("fused", READ + WEIGHTS + OUT + OUT + BOUND, 1),
    ],
)
def test_a_layer_reads_and_writes_what_its_plan_says(plan: str, elements: int, kernels: int) -> None:
    assert layer_seconds(LAYER, 4, 4, MEMORY, PLANS[plan], launch=0.0) == pytest.approx(4 * elements)
    assert layer_seconds(LAYER, 4, 4, MEMORY, PLANS[plan], launch=1e6) == pytest.approx(4 * elements + 1e6 * kernels)


def test_products_count_where_they_take_longer_and_passes_come_on_top() -> None:
    slow = Ceilings(bandwidth=1e30, peak=1.0)
    for plan in PLANS.values():
        assert layer_seconds(LAYER, 4, 4, slow, plan, launch=0.0) == pytest.approx(2 * 4 * 16 * 25 * 8)
    assert network_seconds([LAYER, LAYER], 4, 4, MEMORY, PLANS["fused"], 0.0) == pytest.approx(
        2 * layer_seconds(LAYER, 4, 4, MEMORY, PLANS["fused"], 0.0)
    )


def test_a_bare_layer_has_no_tail() -> None:
    bare = Layer("linear", (8,), (4, 8), (4,))
    times = {layer_seconds(bare, 2, 2, MEMORY, plan, launch=1.0) for plan in PLANS.values()}
    assert times == {2.0 * (16 + 36 + 8) + 1.0}


def test_what_is_written_is_held_against_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = [{"provider": kind, "batch": 2, "median_ms": 5.0} for kind in ("unclamped", "sanitised")]
    monkeypatch.setattr(simulation, "read_results", {"scaling_batch": measured}.__getitem__)
    monkeypatch.setattr(simulation, "cpu_ceilings", lambda: CpuCeilings(1e30, ((8, 4e6),)))
    monkeypatch.setattr(simulation, "layers_of", lambda _network: (LAYER,))
    monkeypatch.setattr(simulation, "NETWORKS", ("a",))
    monkeypatch.setattr(simulation, "by_side", list)
    simulation.run(tmp_path)
    figures = json.loads((tmp_path / "simulation.json").read_text())["figures"]
    plain, clamped = figures["cpu"]["rows"]
    samples = 2 * (200 + 400 + 3 * 400)
    assert plain["simulated_ms"] == pytest.approx((samples + WEIGHTS) / 1e3)  # a float takes a microsecond at 4 MB/s
    assert clamped["simulated_ms"] == pytest.approx((samples + WEIGHTS + BOUND) / 1e3)
    assert [(row["provider"], row["batch"]) for row in (plain, clamped)] == [("unclamped", 2), ("sanitised", 2)]
    assert [(row["network"], row["batch"]) for row in figures["batch"]] == [("a", n) for n in simulation.BATCHES]


def test_without_measurements_there_is_nothing_to_hold_it_against(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("benchmarks.results_file.RESULTS", tmp_path)
    with pytest.raises(NotMeasured, match=r"scaling_batch\.json"):
        simulation.run(tmp_path)
