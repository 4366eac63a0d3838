"""Files in OpenVINO on the CPU, and what is left of it in the process afterwards."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

pytest.importorskip("openvino", reason="OpenVINO is not installed")

from unit_fast.errors import DataError
from unit_fast.export.openvino_model import OpenVinoModel


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }'
    )
    onnx.save(model, tmp_path / "relu.onnx")
    return tmp_path / "relu.onnx"


def test_outputs_come_by_name(relu: Path) -> None:
    model = OpenVinoModel(relu)
    assert model.input_names == ("x",)
    outputs = model.run({"x": np.array([[-1.0, 0.0, 2.0]], np.float32)})
    assert {name: value.tolist() for name, value in outputs.items()} == {"y": [[0.0, 0.0, 2.0]]}


def test_says_what_it_cannot_load_or_run(relu: Path) -> None:
    (relu.parent / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(DataError, match="OpenVINO cannot load"):
        OpenVinoModel(relu.parent / "bad.onnx")
    with pytest.raises(DataError, match="OpenVINO failed on inputs of shapes"):
        OpenVinoModel(relu).run({"x": np.zeros((2, 5), np.float32)})


def test_other_dtypes_and_names_are_refused_and_not_converted(relu: Path) -> None:
    with pytest.raises(DataError, match="got inputs of float64, the file takes float32"):
        OpenVinoModel(relu).run({"x": np.zeros((2, 3))})
    with pytest.raises(DataError, match=r"got the inputs \['z'\], the file takes \['x'\]"):
        OpenVinoModel(relu).run({"z": np.zeros((2, 3), np.float32)})


def test_it_computes_in_float32_with_the_threads_it_is_told_on_any_core(relu: Path) -> None:
    compiled = OpenVinoModel(relu, threads=2)._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert not compiled.get_property("ENABLE_CPU_PINNING")
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_calls_one_after_the_other_share_one_request(relu: Path) -> None:
    model = OpenVinoModel(relu)
    for _ in range(3):
        model.outputs([np.zeros((2, 3), np.float32)])
    with pytest.raises(DataError, match="OpenVINO failed"):
        model.outputs([np.zeros((2, 5), np.float32)])
    assert len(model._idle) == 1
    assert model.outputs([np.ones((1, 3), np.float32)])[0].tolist() == [[1.0, 1.0, 1.0]]


@pytest.fixture
def weighted(tmp_path: Path) -> Path:
    """Two matrices and a number: (x - y) · scale."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[n, 3] x, float[n, 3] y, float scale) => (float[n, 3] z) '
        "{ d = Sub(x, y) z = Mul(d, scale) }"
    )
    onnx.save(model, tmp_path / "weighted.onnx")
    return tmp_path / "weighted.onnx"


def test_inputs_may_lie_in_any_way_and_none_is_left_from_the_call_before(weighted: Path) -> None:
    model = OpenVinoModel(weighted)
    values = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    scale = np.array(2.0, np.float32)
    read_only = values[0].copy()
    read_only.flags.writeable = False
    fortran = np.asfortranarray(values[1])
    for x, y in ((read_only, fortran), (values[0, ::2], values[1, ::2]), (values[0, :, ::-1], values[1][::-1])):
        kept = x.copy(), y.copy()
        (output,) = model.outputs([x, y, scale])
        np.testing.assert_allclose(output.numpy(), (kept[0] - kept[1]) * 2, rtol=1e-6)
        assert (x == kept[0]).all()
        assert (y == kept[1]).all()
    with pytest.raises(DataError, match="OpenVINO failed on inputs of shapes"):
        model.outputs([values[0], values[1, :, :2], scale])
    (output,) = model.outputs([values[1], values[0], np.array(-1.0, np.float32)])
    np.testing.assert_allclose(output.numpy(), values[0] - values[1], rtol=1e-6)


CTRL_C_AFTER = """
import signal, sys, threading
from unit_fast.export.openvino_model import OpenVinoModel

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with Ctrl-C ignored
models = [OpenVinoModel(sys.argv[1]), OpenVinoModel(sys.argv[1])]
{letting_go}
signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize(
    "letting_go",
    [
        pytest.param("del models[0]; del models[0]", id="in-the-order-they-came"),
        pytest.param("t = threading.Thread(target=models.clear); t.start(); t.join()", id="in-another-thread"),
    ],
)
def test_ctrl_c_after_it_is_an_interrupt_and_no_crash(relu: Path, letting_go: str) -> None:
    command = [sys.executable, "-c", CTRL_C_AFTER.format(letting_go=letting_go), relu]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "KeyboardInterrupt" in process.stderr
    assert process.returncode == -signal.SIGINT, process.stderr
