"""What is compiled before a warm-up needs it: which launches, shared how, and that the launches then find it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.dispatch.ways import CALL, CPU, H200, TIMES, FakeClock, some_ways
from unit_fast.kernels.dispatch import ahead, tuning
from unit_fast.kernels.dispatch.dispatcher import Dispatcher
from unit_fast.kernels.dispatch.problem import Problem, Spec, complete
from unit_fast.kernels.dispatch.store import Record, Store, write_table

ROOT = Path(__file__).parents[3]
PROBLEM = Problem.of("epilogue", complete("epilogue", CALL))
OTHER = Problem.of("epilogue", complete("epilogue", (torch.randn(5, 4),)))
TWO_PROCESSES = """
import os, sys
import torch
from unit_fast.kernels.compiling import compiling_for
from unit_fast.kernels.dispatch.ahead import compile_ahead
from unit_fast.kernels.dispatch.candidates import candidates_for
from unit_fast.kernels.dispatch.environment import Environment
from unit_fast.kernels.dispatch.problem import Problem, complete

def in_cache():
    return sorted(os.listdir(os.environ["TRITON_CACHE_DIR"]))

gpu = Environment("NVIDIA H200", "580.1", "2.11 cuda 13.0", "3.6.0", "abc", capability=90, programs=132)
def maps(channels, size):
    return torch.empty(8, channels, size, size, dtype=torch.half).contiguous(memory_format=torch.channels_last)

def weight(*shape):
    return torch.empty(shape, dtype=torch.half).contiguous(memory_format=torch.channels_last)

bound = torch.empty(56, 56, 64, dtype=torch.half).permute(2, 0, 1)
calls = [
    ("conv2d", (maps(3, 112), weight(64, 3, 7, 7), torch.empty(64, dtype=torch.half), None, bound, (2, 2), (3, 3))),
    ("conv2d", (maps(64, 56), weight(64, 64, 1, 1), None, maps(64, 56), bound)),
    ("linear", (torch.empty(37, 100), torch.empty(24, 100), torch.empty(24), None, torch.empty(24), "gelu")),
    ("max_pool2d", (maps(64, 112), None, None, (3, 3), (2, 2), (1, 1))),
    ("epilogue", (maps(64, 56), None, None, None, bound, "relu")),
]
problems = [Problem.of(operator, complete(operator, args)) for operator, args in calls]
launches = [
    (problem, candidate.name)
    for problem in problems
    for candidate in candidates_for(problem, gpu)
    if candidate.provider == "triton"
]
compile_ahead(launches, gpu, processes=2)
before = in_cache()
with compiling_for(90, 132) as compilations:
    for problem, (_, args) in zip(problems, calls, strict=True):
        for candidate in candidates_for(problem, gpu):
            if candidate.provider == "triton":
                candidate.call(*complete(problem.operator, args))
assert len(compilations) > len(launches) > 12, (len(compilations), len(launches))  # the first layer is packed, too
assert before and before == in_cache(), f"{len(before)} in the cache, then {len(in_cache())}"
"""


@pytest.fixture
def asked():
    return []


@pytest.fixture
def under_test(tmp_path, asked):
    def make(clock=True, **options):
        tables = options.pop("tables", tmp_path / "no tables")
        return Dispatcher(
            H200,
            CPU,
            Store(H200, tmp_path, tables),
            FakeClock(TIMES) if clock else None,
            candidates=lambda *_: [way.candidate for way in some_ways()],
            compile_launches=lambda launches, environment: asked.append((launches, environment)),
            **options,
        )

    return make


def names(asked):
    ((launches, environment),) = asked
    assert environment == H200
    return [(problem, name) for problem, name in launches]


def test_every_kernel_that_will_be_timed_is_compiled_once(under_test, asked):
    dispatcher = under_test()
    dispatcher.compile_ahead(iter([PROBLEM, OTHER, PROBLEM]))
    assert names(asked) == [(problem, name) for problem in (PROBLEM, OTHER) for name in ("triton a", "triton b")]
    asked.clear()
    dispatcher.compile_ahead([PROBLEM])
    assert names(asked) == []


def test_what_is_known_is_not_compiled(under_test, asked):
    dispatcher = under_test()
    with tuning():
        dispatcher.choose("epilogue", CALL)
    dispatcher.compile_ahead([PROBLEM])
    under_test().compile_ahead([PROBLEM])  # from the cache on disk
    assert [launches for launches, _ in asked] == [[], []]


def test_what_was_chosen_without_measuring_is(under_test, asked):
    dispatcher = under_test()
    dispatcher.run("epilogue", CALL)
    dispatcher.compile_ahead([PROBLEM])
    assert names(asked) == [(PROBLEM, "triton a"), (PROBLEM, "triton b")]


def test_of_a_shipped_choice_only_that_is(under_test, asked, tmp_path):
    write_table(tmp_path / "tables" / f"{H200.name}.json", H200, {PROBLEM.key: Record("triton b")})
    under_test(tables=tmp_path / "tables").compile_ahead([PROBLEM, OTHER])
    assert names(asked) == [(PROBLEM, "triton b"), (OTHER, "triton a"), (OTHER, "triton b")]


@pytest.mark.parametrize("shipped", [False, True])
def test_a_choice_that_is_there_no_more_is_measured_anew(under_test, asked, tmp_path, shipped):
    gone = Record("cudnn graph 1.0")
    write_table(tmp_path / "tables" / f"{H200.name}.json", H200, {PROBLEM.key: gone} if shipped else {})
    if not shipped:
        Store(H200, tmp_path).put(PROBLEM.key, gone)
    under_test(tables=tmp_path / "tables").compile_ahead([PROBLEM])
    assert names(asked) == [(PROBLEM, "triton a"), (PROBLEM, "triton b")]


def test_who_measures_nothing_compiles_nothing_and_need_not_find_the_problems(under_test, asked):
    def unwanted():
        raise AssertionError("looked for problems")
        yield

    under_test(clock=False).compile_ahead(unwanted())
    assert asked == []


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from("abcdef"))), st.integers(1, 5))
def test_shares_are_all_there_is_and_keep_candidates_together(drawn, count):
    launches = [(replace(PROBLEM, out_shape=(size,)), name) for size, name in drawn]
    shares = ahead.shares(launches, count)
    assert Counter(launch for share in shares for launch in share) == Counter(launches)
    assert len(shares) <= count
    assert all(shares)
    homes = [{name for _, name in share} for share in shares]
    assert sum(map(len, homes)) == len({name for _, name in launches})


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "hwc"])
def test_empty_operands_lie_as_the_spec_says(layout):
    shape = (6, 5, 7) if layout == "hwc" else (2, 6, 5, 7)
    spec = Spec(shape, torch.float16, layout)
    assert Spec.of(spec.empty()) == spec


def test_the_launches_find_what_other_processes_compiled(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)  # with no guard against being imported: users' scripts have none
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_process_that_fails_is_told_of_and_costs_nothing_else(monkeypatch, caplog):
    monkeypatch.setattr(ahead, "interpreting", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # in processes begun here
    launches = [(replace(PROBLEM, out_shape=(size,)), "triton a") for size in range(12)]
    with caplog.at_level(logging.WARNING):
        ahead.compile_ahead(launches, H200, processes=2)
    assert "failed, which costs time only: RuntimeError: nothing is compiled under TRITON_INTERPRET=1" in caplog.text


LAUNCHES = [(replace(PROBLEM, out_shape=(size,)), "triton a") for size in range(12)]


def test_a_process_that_cannot_be_started_is_told_of(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (failure,) = ahead.compile_in_processes(LAUNCHES, H200, 2)
    assert "No such file or directory: '/nowhere/python'" in failure


def test_a_process_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(ahead, "PATIENCE", 0.1)
    failures = ahead.compile_in_processes(LAUNCHES[:1], H200, 1)
    assert failures == ["it took longer than 0 s and was ended"]


@pytest.mark.parametrize(
    ("shell", "told"), [("exit 0", "it ended with 0"), ("echo a warning >&2; kill -9 $$", "it ended with -9")]
)
def test_a_process_must_say_that_it_is_done(tmp_path, monkeypatch, shell, told):
    other = tmp_path / "python-not"
    other.write_text(f"#!/bin/sh\n{shell}\n")
    other.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(other))
    assert ahead.compile_in_processes(LAUNCHES[:1], H200, 1) == [told]


@pytest.mark.parametrize("executable", ["", None, "/usr/bin/qgis", "/opt/uwsgi"])
def test_a_program_that_is_no_python_is_not_started(monkeypatch, executable):
    monkeypatch.setattr(ahead, "interpreting", lambda: False)
    monkeypatch.setattr(subprocess, "Popen", None)  # would be called
    monkeypatch.setattr(sys, "executable", executable)
    ahead.compile_ahead(LAUNCHES, H200, processes=2)


def test_a_process_ends_with_its_parent_and_leaves_nothing(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    code = f"from unit_fast.kernels.dispatch.ahead import _end_with_parent; _end_with_parent({str(folder)!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=ROOT) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.stdin.close()
        assert process.wait(60) == 1
    assert not folder.exists()


@pytest.mark.parametrize("shadowed", ["sitecustomize.py", "logging.py", "encodings/__init__.py"])
def test_modules_beside_the_script_do_not_go_before_the_library(tmp_path, monkeypatch, shadowed):
    marker = tmp_path / "marker"
    module = tmp_path / "beside" / shadowed
    module.parent.mkdir(parents=True)
    module.write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "beside"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert ahead.compile_in_processes([], H200, 1) == []
    assert ahead.compile_in_processes(LAUNCHES[:1], H200, 1) == []
    assert not marker.exists()


def test_a_launch_that_cannot_be_posed_costs_only_itself(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert ahead.compile_in_processes([(PROBLEM, "no such candidate"), (PROBLEM, "triton")], H200, 1) == []
    assert len(list(tmp_path.glob("*/*.cubin"))) == 1


@pytest.mark.parametrize(
    ("quota", "cores"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 64), (None, 64)]
)
def test_a_container_s_quota_counts(monkeypatch, tmp_path, quota, cores):
    file = tmp_path / "cpu.max"
    if quota:
        file.write_text(quota + "\n")
    monkeypatch.setattr(ahead, "CPU_QUOTA", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert ahead._cores() == cores


def test_few_launches_are_left_to_their_first_use(monkeypatch):
    monkeypatch.setattr(ahead, "interpreting", lambda: False)
    monkeypatch.setattr(subprocess, "Popen", None)  # would be called
    ahead.compile_ahead([(PROBLEM, "triton a")] * (2 * ahead.LEAST_LAUNCHES - 1), H200, processes=8)
    ahead.compile_ahead([(PROBLEM, "triton a")] * 100, H200, processes=1)


@pytest.mark.parametrize(("value", "processes"), [("3", 3), ("1", 1), ("", None)])
def test_the_variable_says_how_many(monkeypatch, value, processes):
    monkeypatch.setenv(ahead.VARIABLE, value)
    found = ahead.processes_from_environment()
    assert found == processes if processes else 1 <= found <= ahead.MOST_PROCESSES


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_bad_variable_is_refused(monkeypatch, value):
    monkeypatch.setenv(ahead.VARIABLE, value)
    with pytest.raises(ValueError, match=f"UNIT_FAST_COMPILE_PROCESSES is '{value}'; expected a whole number above 0"):
        ahead.processes_from_environment()
