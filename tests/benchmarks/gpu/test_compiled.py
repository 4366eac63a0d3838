"""What the value sweep launches is compiled, not only interpreted: the compiler refuses what the interpreter takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu.compiled import Task, compile_launches
from benchmarks.gpu.value_cases import value_cases

pytest.importorskip("triton", reason="the kernels need Triton")

NOT_INTERPRETED = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
REFUSED = """
import torch
import triton
import triton.language as tl
from unit_fast.kernels.compiling import compiling_for

@triton.jit
def kernel(out_ptr, N):
    if N > 4:
        c = tl.arange(0, 4)
        tl.store(out_ptr + c, c)
    else:
        c = tl.arange(0, 8)
        tl.store(out_ptr + c, c)

with compiling_for(90):
    kernel[(1,)](torch.empty(8, dtype=torch.int32), 9)
"""


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=NOT_INTERPRETED, capture_output=True, text=True, timeout=580, check=False)


@pytest.mark.parametrize(
    "arguments", [("--target", "90", "--dtypes", "fp16", "--every", "2"), ("--target", "80", "--every", "16")]
)
def test_what_the_sweep_launches_compiles(arguments):
    done = _python("-m", "benchmarks.gpu.compiled", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_only_the_interpreter_takes_is_seen(tmp_path):
    script = tmp_path / "script.py"  # Triton reads a kernel's source from its file
    script.write_text(REFUSED)
    done = _python(str(script))
    assert done.returncode != 0
    assert "Mismatched type for c" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU that is there")
def test_nothing_is_compiled_where_kernels_are_interpreted():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compile_launches(Task(value_cases(90, ("fp16",))[0], 90))
