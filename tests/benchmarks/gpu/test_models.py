"""Whole networks are verified before they are timed, in an order of worth, and an earlier run's rows are kept."""

import json
import os
import time
from itertools import groupby

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from benchmarks.gpu import models
from benchmarks.gpu.models import Task, planned, ratios, summary, timed, warmed_up
from benchmarks.gpu.session import Session
from benchmarks.results_file import environment


def session(folder, dry_run=False):
    return Session(folder, dry_run, time.monotonic() + 60, 1, "cpu", "NVIDIA H200")


@pytest.fixture(autouse=True)
def _gradients():
    yield
    torch.set_grad_enabled(True)  # the part's processes go without


@pytest.mark.parametrize("contender", ["eager", "unit_fast", "unclamped_default"])
def test_a_contender_is_timed(contender, tmp_path):
    row = timed(Task("tiny", 2, contender, True, tmp_path))
    timing = row["microseconds"]
    assert 0 < timing["p20"] <= timing["median"] <= timing["p80"]
    assert row["images_per_second"] == pytest.approx(2e6 / timing["median"])


def test_a_contender_that_is_wrong_is_not_timed(monkeypatch, tmp_path):
    monkeypatch.setitem(models._MAKERS, "eager", lambda module, _program, images: lambda: module(images) + 1)
    with pytest.raises(RuntimeError, match="eager is wrong: output 0 is off by"):
        timed(Task("tiny", 2, "eager", True, tmp_path))


def test_warmup_is_timed_over_caches_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIT_FAST_CACHE", "elsewhere")
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    assert warmed_up(Task("tiny", 0, "cold", True, tmp_path))["seconds"] > 0


def test_every_network_batch_and_contender_is_planned_once(tmp_path):
    contenders, warmups, later = (
        [models._name(task) for task in stage.tasks] for stage in planned(session(tmp_path), tmp_path)
    )
    names = [*contenders, *warmups, *later]
    assert len(names) == len(set(names)) == len(models.NETWORKS) * 3 * 8 + 2
    assert contenders[:3] == [f"resnet50/{batch}/unit_fast" for batch in (32, 1, 256)]
    assert warmups == ["resnet50/warmup/cold", "resnet50/warmup/cached"]
    assert all("max_autotune" in name or "default" in name for name in later)


def test_a_process_keeps_to_one_contender_on_one_network(tmp_path, monkeypatch):
    asked = []

    def run_tasks(function, tasks, *, workers, line_of, **_):
        asked.append((function, workers, [len(list(line)) for _, line in groupby(tasks, line_of)]))
        return iter(())

    monkeypatch.setattr(models, "run_tasks", run_tasks)
    one = session(tmp_path)
    one.workers = 16
    models.measure(one)
    lines = len(models.NETWORKS) * 4
    assert asked == [
        ("benchmarks.gpu.models:timed", models.SIDE_BY_SIDE, [3] * lines),
        ("benchmarks.gpu.models:warmed_up", 1, [1, 1]),
        ("benchmarks.gpu.models:timed", 1, [3] * lines),
    ]


def test_what_part_dispatch_measured_serves_ours(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("UNIT_FAST_CACHE", "elsewhere")

    def made(module, _program, images):
        seen.append(os.environ["UNIT_FAST_CACHE"])
        return lambda: module(images)

    monkeypatch.setitem(models._MAKERS, "unit_fast", made)
    timed(Task("tiny", 2, "unit_fast", True, tmp_path))
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
