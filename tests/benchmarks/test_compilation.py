"""What compiling for a warm-up is measured on: every kernel it would try, compiled for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")

from benchmarks import compilation

ROOT = Path(__file__).parents[2]
SMALL = """
import sys
from pathlib import Path
from benchmarks import compilation
from benchmarks.results_file import write_results
from unit_fast.kernels.dispatch.problem import Problem

if __name__ == "__main__":
    launches = compilation.launches_of("tiny", (2,))
    assert all(isinstance(problem, Problem) and name.startswith("triton") for problem, name in launches), launches
    assert {problem.x.shape[0] for problem, _ in launches} == {2}
    assert {problem.operator for problem, _ in launches} >= {"conv2d"}
    compilation.launches_of = lambda name: launches[:5]
    write_results("compilation", compilation.measure(("tiny",), rounds=1), Path(sys.argv[1]))
"""


def test_kernels_are_compiled_anew_in_every_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SMALL)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "compilation.json").read_text())["figures"]
    assert row["launches"] == 5
    assert 1 <= row["kernels"] <= 10
    assert all(times == [pytest.approx(times[0])] and times[0] > 0.5 for times in row["seconds"].values())
    assert "1" in row["seconds"]


def test_a_process_that_fails_is_an_error(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # in processes begun here
    launches = compilation.launches_of("tiny", (2,))
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compilation.seconds(launches[:2], 1)
