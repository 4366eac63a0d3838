"""OnnxRuntimeModel: an ONNX file called like a model."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from unit_fast.errors import BackendUnavailableError, DataError
from unit_fast.export import OnnxRuntimeModel
from unit_fast.export.runtimes import load_runtime
from unit_fast.export.session import STRUCTURE_KEY


@pytest.fixture
def add_file(tmp_path: Path) -> Path:
    """A file that returns left + right, and left - right."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("left", "right")]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("sum", "difference")]
    nodes = [
        helper.make_node("Add", ["left", "right"], ["sum"]),
        helper.make_node("Sub", ["left", "right"], ["difference"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values, results), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    path = tmp_path / "add.onnx"
    onnx.save(model, path)
    return path


LEFT, RIGHT = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]])


def test_inputs_are_taken_by_position_and_by_name(add_file: Path) -> None:
    model = OnnxRuntimeModel(add_file, threads=1)

    for result in (model(LEFT, RIGHT), model(LEFT, right=RIGHT), model(right=RIGHT, left=LEFT)):
        assert torch.equal(result["sum"], torch.tensor([[11.0, 22.0]]))
        assert torch.equal(result["difference"], torch.tensor([[-9.0, -18.0]]))
    assert model.input_names == ("left", "right")
    assert model.output_names == ("sum", "difference")


def test_strides_gradients_and_empty_batches_are_no_matter(add_file: Path) -> None:
    model = OnnxRuntimeModel(add_file, threads=1)
    strided = torch.arange(4.0).reshape(2, 2).t().requires_grad_()

    assert torch.equal(model(strided, strided)["sum"], strided.detach() * 2)
    assert model(LEFT[:0], RIGHT[:0])["sum"].shape == (0, 2)


def test_outputs_nest_as_the_file_says(add_file: Path) -> None:
    file = onnx.load(add_file)
    entry = file.metadata_props.add()
    entry.key, entry.value = STRUCTURE_KEY, '{"tuple": ["sum", {"dict": {"d": {"list": ["difference", null]}}}]}'
    onnx.save(file, add_file)

    first, second = OnnxRuntimeModel(add_file, threads=1)(LEFT, RIGHT)

    assert torch.equal(first, torch.tensor([[11.0, 22.0]]))
    assert torch.equal(second["d"][0], torch.tensor([[-9.0, -18.0]]))
    assert second["d"][1] is None


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        pytest.param((LEFT,), {}, r"got the inputs \['left'\], the file takes \['left', 'right'\]", id="too-few"),
        pytest.param((LEFT, RIGHT, LEFT), {}, "got 3 inputs, the file takes 2", id="too-many"),
        pytest.param((LEFT, RIGHT), {"up": LEFT}, r"got the inputs \['left', 'right', 'up'\]", id="unknown"),
        pytest.param((LEFT.double(), RIGHT), {}, r"left is torch\.float64, the file takes torch\.float32", id="dtype"),
        pytest.param((LEFT[:, :1], RIGHT), {}, r"ONNX Runtime failed on inputs of shapes", id="shape"),
    ],
)
def test_wrong_inputs_are_data_errors(add_file: Path, args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        OnnxRuntimeModel(add_file, threads=1)(*args, **kwargs)


def test_a_missing_or_damaged_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        OnnxRuntimeModel(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not ONNX")
    with pytest.raises(DataError, match="cannot load"):
        OnnxRuntimeModel(tmp_path / "bad.onnx")


def test_options_reach_the_session(add_file: Path) -> None:
    runtime = load_runtime("onnxruntime")
    model = OnnxRuntimeModel(add_file, threads=3, optimize=False, spin=False)

    options = model.session.get_session_options()

    assert options.intra_op_num_threads == 3
    assert options.graph_optimization_level == runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_silent_fall_back_to_the_cpu_is_an_error(add_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = load_runtime("onnxruntime")

    class Session:
        def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "InferenceSession", Session)

    with pytest.raises(BackendUnavailableError, match="fell back to CPUExecutionProvider where CUDA"):
        OnnxRuntimeModel(add_file, device="cuda")


def test_a_provider_this_build_lacks_is_named(add_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_runtime("onnxruntime"), "get_available_providers", lambda: ["CPUExecutionProvider"])

    with pytest.raises(BackendUnavailableError, match=r"this build has CPUExecutionProvider.*onnxruntime-gpu"):
        OnnxRuntimeModel(add_file, device="cuda")
    with pytest.raises(BackendUnavailableError, match=r"expected one of \['cpu', 'cuda'\]"):
        OnnxRuntimeModel(add_file, device="tpu")


def test_results_are_tensors_of_their_own(add_file: Path) -> None:
    model = OnnxRuntimeModel(add_file, threads=1)

    first = model(LEFT, RIGHT)["sum"]
    model(LEFT * 5, RIGHT)

    assert np.array_equal(first.numpy(), [[11.0, 22.0]])
