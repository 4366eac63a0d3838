"""The value sweep sees what is wrong, says where, and goes on."""

import json
import time
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")

from benchmarks.gpu import values
from benchmarks.gpu.pool import Outcome
from benchmarks.gpu.session import Session
from benchmarks.gpu.value_cases import ITEM_SIZE, ValueCase, controls, value_cases
from unit_fast.kernels.configs import CONV2D, LINEAR, STEM, MatmulConfig

GOOD = ValueCase("linear", "fp16", LINEAR[80][-1], (17, 32), (40, 32), residual=True)


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path, True, time.monotonic() + 120, 1, "cpu", "cpu")


def test_wrong_and_crashing_configurations_are_listed_and_the_rest_goes_on(session, monkeypatch):
    monkeypatch.setattr(values, "controls", list)  # test_gpu has them
    wrong, crashing = replace(GOOD, fault="short sum"), replace(GOOD, fault="crash", act="gelu")
    refused = replace(GOOD, config=LINEAR[90][0], x=(17, 33), weight=(40, 33))  # rows that TMA cannot address
    values.sweep(session, [crashing, wrong, refused, GOOD])
    figures = json.loads((session.folder / "gpu_dry_run_values.json").read_text())["figures"]
    assert [row["case"] for row in figures["differing"]] == [wrong.name]
    assert figures["differing"][0]["error"] > 0.1
    assert {row["case"]: row["failure"].split(":")[0] for row in figures["failed"]} == {
        crashing.name: "its process died (exit code 3)",
        refused.name: "ValueError",
    }
    assert figures["kernels"]["linear fp16"]["agreeing"] == 1
    assert figures["complete"]


def test_a_sweep_that_does_not_see_a_short_sum_fails(session, monkeypatch):
    monkeypatch.setattr(values, "controls", lambda: [GOOD])
    monkeypatch.setattr(
        values, "run_tasks", lambda _, tasks, **__: (Outcome(t, values.compare(t), None) for t in tasks)
    )
    with pytest.raises(RuntimeError, match="the sweep is blind"):
        values.sweep(session, [])


def test_a_sweep_out_of_time_is_not_complete(session):
    session.deadline = time.monotonic()
    figures = values.sweep(session, [GOOD])
    assert (figures["complete"], figures["done"]) == (False, 0)


@pytest.mark.parametrize("architecture", sorted(LINEAR))
def test_every_shipped_configuration_is_swept_in_every_dtype_it_serves(architecture):
    cases = value_cases(architecture, ("fp16", "bf16", "fp32", "tf32"))
    swept = {
        (c.config, c.dtype, c.operator, c.weight[2:] == (1, 1)) for c in cases if isinstance(c.config, MatmulConfig)
    }
    for dtype, itemsize in ITEM_SIZE.items():
        for config in LINEAR[architecture]:
            for operator, one_by_one in (("linear", False), ("conv2d", True)):
                assert ((config, dtype, operator, one_by_one) in swept) == (config.float32 or itemsize == 2)
        for config in {*CONV2D[architecture], *STEM[architecture]}:
            assert ((config, dtype, "conv2d", False) in swept) == (config.float32 or itemsize == 2)
    assert len({case.name for case in cases}) == len(set(cases)) == len(cases)


def test_first_round_meets_every_configuration_once():
    cases = value_cases(90, ("fp16",))
    expected = [*LINEAR[90], *CONV2D[90], *STEM[90]]
    assert [case.config for case in cases[: len(expected)]] == expected


@pytest.mark.parametrize("case", [c for c in value_cases(90, ("fp32",)) if c.size() < 10_000 and not c.weight], ids=str)
def test_pointwise_and_backward_cases_agree_in_float32(case):
    found = values.compare(case)
    assert found["error"] <= found["tolerance"]


def test_controls_are_cases_that_do_something_wrong():
    assert [case.fault for case in controls()] == ["short sum", "crash"]
