"""A file that kills ONNX Runtime is refused, and this process lives on to say so."""

import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from unit_fast.errors import ParityError
from unit_fast.export import crash


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """x @ x, in half precision."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2, 2]) for name in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "product", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_file_that_loads_passes(product: Path) -> None:
    pytest.importorskip("onnxruntime")
    crash.require_survival(product)


def test_a_file_that_kills_its_process_is_refused(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "_LOAD", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(ParityError, match=r"crashes \(SIGSEGV\).*fp32"):
        crash.require_survival(product)


def test_what_fails_without_a_crash_is_left_to_others(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "_LOAD", "raise SystemExit(1)")
    crash.require_survival(product)


def test_a_process_that_is_ended_from_outside_did_not_crash(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "_LOAD", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")  # as without memory
    crash.require_survival(product)


def test_a_file_that_takes_too_long_is_left_to_others(
    product: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(crash, "_LOAD", "import time; time.sleep(60)")
    monkeypatch.setattr(crash, "_SECONDS", 0.1)
    crash.require_survival(product)
    assert "whether it would crash is not known" in caplog.text


def test_files_without_what_crashes_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    crash.require_survival(tmp_path / "m.onnx")
