"""The quickest of ``tests/runtime/test_on_gpu.py`` where there is no GPU; ``make test-emulated-gpu`` runs them all."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.emulated_gpu import device

ROOT = Path(__file__).parents[2]
TESTS = (
    "test_output_is_that_of_the_sanitised_graph_at_every_batch_size[vit-dtype12-triton]",  # float16
    "test_monitor_counts_as_the_sanitised_graph_does[vit]",
    "test_inside_a_graph_of_the_caller_s_own",
    "test_deepcopy_and_half",
    "test_an_empty_batch",
    "test_the_other_backends[compile]",
)


@pytest.fixture
def _emulated():
    if torch.cuda.is_available():
        pytest.skip("a GPU is there, for which test_on_gpu.py itself is")
    reason = device.refusal()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.slow
@pytest.mark.usefixtures("_emulated")
def test_the_quickest_of_test_on_gpu_pass_on_an_emulated_one():
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += ["-p", "tests.emulated_gpu.plugin", *(f"tests/runtime/test_on_gpu.py::{name}" for name in TESTS)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert re.search(rf"^{len(TESTS)} passed", told, re.MULTILINE), told  # a skipped test would have passed above


@pytest.mark.slow
@pytest.mark.usefixtures("_emulated")
def test_inductor_compiles_the_sanitised_graphs_for_a_gpu():
    done = subprocess.run(
        [sys.executable, "-m", "tests.emulated_gpu.inductor"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(re.match(r"(\d+) kernels$", done.stdout)[1]) > 20, done.stdout


def test_another_torch_is_refused(tmp_path, monkeypatch):
    (tmp_path / "constraints.txt").write_text("torch==1.0\n")
    monkeypatch.setattr(device, "CONSTRAINTS", tmp_path / "constraints.txt")
    assert "torch 1.0, which constraints.txt names" in device.refusal()


def test_a_missing_compiler_is_told(monkeypatch):
    if device.refusal() is not None:
        pytest.skip("another reason comes first")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "compiled with g++" in device.refusal()
