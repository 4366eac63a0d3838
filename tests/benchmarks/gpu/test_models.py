"""Whole networks are verified before they are timed, in an order of worth, and an earlier run's rows are kept."""

import json
import os
import time
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from benchmarks.gpu import models
from benchmarks.gpu.models import CONTENDERS, Task, planned, ratios, summary, timed, warmed_up
from benchmarks.gpu.pool import Outcome
from benchmarks.gpu.session import Session
from benchmarks.results_file import environment


def session(folder, dry_run=False):
    return Session(folder, dry_run, time.monotonic() + 60, 1, "cpu", "NVIDIA H200")


@pytest.fixture(autouse=True)
def _gradients():
    yield
    torch.set_grad_enabled(True)  # the part's processes go without


def task(folder, *contenders, batch=2):
    return Task("tiny", batch, contenders, True, folder, time.monotonic() + 600)


def test_contenders_are_timed_one_after_the_other(tmp_path):
    contenders = ("eager", "unit_fast", "unclamped_default")
    rows = timed(task(tmp_path, *contenders))
    assert tuple(rows) == contenders
    for row in rows.values():
        timing = row["microseconds"]
        assert 0 < timing["p20"] <= timing["median"] <= timing["p80"]
        assert row["images_per_second"] == pytest.approx(2e6 / timing["median"])


def test_a_contender_that_is_wrong_is_not_timed_and_the_others_are(monkeypatch, tmp_path):
    monkeypatch.setitem(models._MAKERS, "default", lambda module, _program, images: lambda: module(images) + 1)
    rows = timed(task(tmp_path, "default", "eager"))
    assert "default is wrong: output 0 is off by" in rows["default"]["failure"]
    assert rows["eager"]["microseconds"]["median"] > 0


def test_what_is_not_begun_by_the_deadline_is_left_out(tmp_path):
    assert timed(replace(task(tmp_path, "eager"), deadline=time.monotonic())) == {}


def test_warmup_is_timed_over_caches_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIT_FAST_CACHE", "elsewhere")
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    assert warmed_up(task(tmp_path, "cold", batch=0))["cold"]["seconds"] > 0


def test_every_network_batch_and_contender_is_planned_once(tmp_path):
    contenders, warmups, later = (
        [task.name(contender) for task in stage.tasks for contender in task.contenders]
        for stage in planned(session(tmp_path), tmp_path)
    )
    names = [*contenders, *warmups, *later]
    assert len(names) == len(set(names)) == len(models.NETWORKS) * 3 * 9 + 2
    assert contenders[: len(CONTENDERS)] == [f"resnet50/32/{contender}" for contender in CONTENDERS]
    assert warmups == ["resnet50/warmup/cold", "resnet50/warmup/cached"]
    assert {name.rsplit("/", 1)[1] for name in later} == set(models.LATER)


def test_a_process_has_one_network_at_one_batch_size_and_max_autotune_the_machine(tmp_path, monkeypatch):
    asked = []

    def run_tasks(function, tasks, *, workers, **_):
        asked.append((function, workers, len(tasks)))
        return iter(())

    monkeypatch.setattr(models, "run_tasks", run_tasks)
    one = session(tmp_path)
    one.workers = 16
    models.measure(one)
    cases = len(models.NETWORKS) * 3
    assert asked == [
        ("benchmarks.gpu.models:timed", models.SIDE_BY_SIDE, cases),
        ("benchmarks.gpu.models:warmed_up", 1, 2),
        ("benchmarks.gpu.models:timed", 1, cases),
    ]


def test_a_process_that_dies_costs_its_rows_and_no_others(tmp_path, monkeypatch):
    def run_tasks(_function, tasks, **_):
        return iter([Outcome(tasks[0], None, "its process died"), Outcome(tasks[1], {"eager": {"seconds": 1}}, None)])

    monkeypatch.setattr(models, "run_tasks", run_tasks)
    models.measure(session(tmp_path))
    found = json.loads((tmp_path / "gpu_h200_models.json").read_text())["figures"]["rows"]
    assert found["resnet50/32/eager"] == {"failure": "its process died"}
    assert found["resnet50/1/eager"] == {"seconds": 1}


def test_what_part_dispatch_measured_serves_ours(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("UNIT_FAST_CACHE", "elsewhere")

    def made(module, _program, images):
        seen.append(os.environ["UNIT_FAST_CACHE"])
        return lambda: module(images)

    monkeypatch.setitem(models._MAKERS, "unit_fast", made)
    timed(task(tmp_path, "unit_fast"))
    assert seen == [str(tmp_path / "dispatch_cache")]


def rows(**medians):
    return {name.replace("__", "/"): {"microseconds": {"median": value}} for name, value in medians.items()}


def test_ratios_say_how_many_times_as_fast_ours_is():
    found = ratios(
        rows(
            a__1__unit_fast=2.0,
            a__1__eager=6.0,
            a__1__reduce_overhead=3.0,
            b__1__unit_fast=4.0,
            b__1__eager=4.0,
            c__1__eager=1.0,
        )
        | {"a/1/max_autotune": {"failure": "took too long"}}
    )
    assert found == {"a/1": {"eager": 3.0, "reduce_overhead": 1.5}, "b/1": {"eager": 1.0}}
    assert summary(found) == [
        "over reduce_overhead: 1.50× in the mean of 1, at least 1.50× (a/1)",
        "over eager: 1.73× in the mean of 2, at least 1.00× (b/1)",
    ]


def test_rows_of_an_earlier_run_are_kept_but_for_failures(tmp_path):
    kept = rows(a__1__eager=6.0)
    content = {"environment": environment(), "figures": {"rows": kept | {"a/1/unit_fast": {"failure": "it died"}}}}
    path = tmp_path / "gpu_h200_models.json"
    path.write_text(json.dumps(content))
    assert models._kept(session(tmp_path)) == kept
    path.write_text(json.dumps(content | {"environment": {"gpu": "another"}}))
    assert models._kept(session(tmp_path)) == {}
