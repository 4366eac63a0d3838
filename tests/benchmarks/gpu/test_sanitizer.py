"""The command for compute-sanitizer is one that it takes, and its findings are read off its exit code."""

import json
import os
import sys
import time

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")

from benchmarks.gpu import sanitizer
from benchmarks.gpu.session import Session

# Runs what it is given, and finds something in the planted run where it is told to.
TOOL = """#!{python}
import os, subprocess, sys
arguments = sys.argv[1:]
assert arguments[0] == "--tool" and arguments[1] in ("memcheck", "racecheck"), arguments
assert arguments[2:4] == ["--error-exitcode", "99"], arguments
assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
code = subprocess.run(arguments[4:]).returncode
sys.exit(99 if "--planted" in arguments and {sees} else code)
"""


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path, True, time.monotonic() + 200, 1, "cpu", "cpu")


def _install(folder, monkeypatch, sees: bool) -> None:
    tool = folder / "compute-sanitizer"
    tool.write_text(TOOL.format(python=sys.executable, sees=sees))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sanitizer, "DRY_CASES", 2)


def test_sample_runs_under_every_tool(session, monkeypatch):
    _install(session.folder, monkeypatch, sees=True)
    monkeypatch.delitem(sanitizer.RUNS, "memcheck")
    lines = sanitizer.measure(session)
    figures = json.loads((session.folder / "gpu_dry_run_sanitizer.json").read_text())["figures"]
    assert figures["complete"]
    assert {name: run["exit_code"] for name, run in figures["runs"].items()} == {
        "memcheck, planted": 99,
        "racecheck": 0,
    }
    assert sum(": 0." in line or "e-" in line for line in figures["runs"]["racecheck"]["said"]) == 2
    assert [line.split(": ")[1] for line in lines] == ["as expected"] * 2


def test_a_tool_that_misses_the_planted_fault_is_not_believed(session, monkeypatch):
    _install(session.folder, monkeypatch, sees=False)
    monkeypatch.setattr(sanitizer, "RUNS", {"memcheck, planted": ("memcheck", "--planted")})
    with pytest.raises(RuntimeError, match="does not see"):
        sanitizer.measure(session)


def test_without_the_tool_it_says_where_it_comes_from(session, monkeypatch):
    monkeypatch.setenv("PATH", str(session.folder))
    session.dry_run = False
    with pytest.raises(RuntimeError, match="CUDA toolkit"):
        sanitizer.measure(session)


@pytest.mark.parametrize("cases", [sanitizer.smallest_cases(column) for column in (80, 90)], ids=["sm_80", "sm_90"])
def test_sample_has_every_configuration(cases):
    from unit_fast.kernels.configs import CONV2D, LINEAR, STEM

    column = 90 if any(getattr(case.config, "loader", "") == "tma" for case in cases) else 80
    assert {*LINEAR[column], *CONV2D[column], *STEM[column]} <= {case.config for case in cases}
