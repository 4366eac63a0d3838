"""The repository that Triton Inference Server is given, read by the schema the server itself is built on."""

import importlib.util
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.export.models import made_bounds, make
from unit_fast.errors import DataError, UnitFastError
from unit_fast.export import ExportError, OnnxRuntimeModel, TritonOptions, export_onnx, triton_repository
from unit_fast.files import OutputError

# Of Triton's DataType enumeration, beside what ONNX Runtime calls the same.
RUNTIME_TYPES = {"TYPE_FP32": "tensor(float)", "TYPE_FP16": "tensor(float16)", "TYPE_INT64": "tensor(int64)"}


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """NVIDIA's model_config.proto, compiled. Loaded by its path: the package around it wants grpc."""
    pytest.importorskip("tritonclient", reason="tritonclient brings the schema of config.pbtxt; it is not installed")
    path = distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(schema: ModuleType, folder: Path) -> Any:
    """The ModelConfig of a model's folder; unknown fields, wrong types and unknown names of enumerations raise."""
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


def write(
    path: Path, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], dtype: int = TensorProto.FLOAT
) -> Path:
    """An ONNX file with this signature; its content is never run."""
    values = [
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in tensors.items()]
        for tensors in (inputs, outputs)
    ]
    nodes = [helper.make_node("Identity", [next(iter(inputs))], [name]) for name in outputs]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", *values)), path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    model, images = make("small")
    export_onnx(model, made_bounds("small", "channel"), path, example_input=images, verify=False)
    return path


def test_the_repository_is_what_the_server_expects(tmp_path: Path, exported: Path, schema: ModuleType) -> None:
    placed = triton_repository(exported, tmp_path / "small", TritonOptions(device="cuda", instances=2, queue_delay=500))

    assert placed == tmp_path / "small" / "1" / "model.onnx"
    assert placed.read_bytes() == exported.read_bytes()
    assert names(tmp_path) == ["small"]
    config = parse(schema, tmp_path / "small")
    assert config.name == "small"
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert (tmp_path / "small" / "1" / config.default_model_filename).is_file()
    assert config.max_batch_size == 32
    assert list(config.dynamic_batching.preferred_batch_size) == []
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(group.kind, group.count) for group in config.instance_group] == [(schema.ModelInstanceGroup.KIND_GPU, 2)]
    assert not config.HasField("optimization")


def test_config_and_file_have_the_same_signature(tmp_path: Path, exported: Path, schema: ModuleType) -> None:
    placed = triton_repository(exported, tmp_path / "small")

    config = parse(schema, tmp_path / "small")
    session = OnnxRuntimeModel(placed).session
    for described, actual in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [tensor.name for tensor in described] == [tensor.name for tensor in actual]
        for tensor, value in zip(described, actual, strict=True):
            assert not isinstance(value.shape[0], int), "the first dimension is the server's to choose"
            assert list(tensor.dims) == value.shape[1:]
            assert RUNTIME_TYPES[schema.DataType.Name(tensor.data_type)] == value.type


def test_batches_to_wait_for(tmp_path: Path, exported: Path, schema: ModuleType) -> None:
    triton_repository(exported, tmp_path / "m", TritonOptions(max_batch_size=64, preferred_batch_sizes=(16, 64)))

    config = parse(schema, tmp_path / "m")
    assert config.max_batch_size == 64
    assert list(config.dynamic_batching.preferred_batch_size) == [16, 64]
    assert config.dynamic_batching.max_queue_delay_microseconds == 100


def test_tensorrt(tmp_path: Path, exported: Path, schema: ModuleType) -> None:
    triton_repository(exported, tmp_path / "m", TritonOptions(max_batch_size=8, device="cuda", tensorrt=True))

    (accelerator,) = parse(schema, tmp_path / "m").optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP32",
        "max_workspace_size_bytes": "1073741824",
        "trt_profile_min_shapes": "input:1x3x8x8",
        "trt_profile_opt_shapes": "input:8x3x8x8",
        "trt_profile_max_shapes": "input:8x3x8x8",
    }


@pytest.mark.parametrize(
    ("precision", "mode"), [("fp32", "FP32"), ("fp16", "FP16"), ("int8", "INT8")], ids=lambda value: str(value)
)
def test_tensorrt_computes_in_the_precision_of_the_file(
    tmp_path: Path, schema: ModuleType, precision: str, mode: str
) -> None:
    file = write(tmp_path / "m.onnx", {"x": ["batch", "length"]}, {"y": ["batch", "length"]})
    model = onnx.load(file)
    helper.set_model_props(model, {"unit_fast.precision": precision})
    onnx.save(model, file)

    triton_repository(file, tmp_path / "m", TritonOptions(tensorrt=True))

    (accelerator,) = parse(schema, tmp_path / "m").optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.parameters["precision_mode"] == mode
    assert not any("profile" in key for key in accelerator.parameters), "no profile for a length that varies"


def test_other_shapes_types_and_names(tmp_path: Path, schema: ModuleType) -> None:
    """Two inputs, a dimension that varies beside the batch, one number a sample, a name to escape."""
    inputs = {"tokens": ["batch", "length"], 'a "mask" ü': ["batch", "length"]}
    file = write(tmp_path / "m.onnx", inputs, {"score": ["batch"]}, TensorProto.INT64)

    triton_repository(file, tmp_path / "m")

    config = parse(schema, tmp_path / "m")
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("tokens", [-1]), ('a "mask" ü', [-1])]
    assert {tensor.data_type for tensor in config.input} == {schema.TYPE_INT64}
    (score,) = config.output
    assert list(score.dims) == [1]
    assert score.HasField("reshape")
    assert list(score.reshape.shape) == []


def test_without_batching(tmp_path: Path, schema: ModuleType) -> None:
    file = write(tmp_path / "m.onnx", {"x": ["batch", 3], "scale": [3]}, {"y": ["batch", 3]})
    with pytest.raises(ExportError, match=r"scale has the shape \[3\], without a batch.*max_batch_size=0"):
        triton_repository(file, tmp_path / "m")
    assert not (tmp_path / "m").exists()

    triton_repository(file, tmp_path / "m", TritonOptions(max_batch_size=0))

    config = parse(schema, tmp_path / "m")
    assert [list(tensor.dims) for tensor in config.input] == [[-1, 3], [3]]
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")


def test_a_new_version_goes_into_the_next_folder(tmp_path: Path, exported: Path) -> None:
    folder = tmp_path / "small"
    triton_repository(exported, folder)
    (folder / "config.pbtxt").write_text("# edited\n")
    (folder / "9").mkdir()  # holds no model, so it is no version
    (folder / "notes").mkdir()

    second = triton_repository(exported, folder, new_version=True)
    third = triton_repository(exported, folder, new_version=True)

    assert (second, third) == (folder / "2" / "model.onnx", folder / "3" / "model.onnx")
    assert third.read_bytes() == exported.read_bytes()
    assert (folder / "config.pbtxt").read_text() == "# edited\n"
    assert names(folder) == ["1", "2", "3", "9", "config.pbtxt", "notes"]


def test_versions_have_the_same_signature(tmp_path: Path, exported: Path) -> None:
    triton_repository(exported, tmp_path / "small")
    other = write(tmp_path / "other.onnx", {"input": ["batch", 3, 8, 8]}, {"output": ["batch", 7]})

    with pytest.raises(
        ExportError, match=r"outputs output TYPE_FP32 \[-1, 7\] where .* has output TYPE_FP32 \[-1, 5\]"
    ):
        triton_repository(other, tmp_path / "small", new_version=True)
    assert names(tmp_path / "small") == ["1", "config.pbtxt"]


def test_tensors_outside_the_file_come_along(tmp_path: Path) -> None:
    file = write(tmp_path / "big.onnx", {"x": ["batch", 3]}, {"y": ["batch", 3]})
    model = onnx.load(file)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2000, np.float32), "w"))
    model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "b"], ["y"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "b"))
    onnx.save(model, file, save_as_external_data=True, location="big.onnx.data", size_threshold=1000)

    placed = triton_repository(file, tmp_path / "big")

    assert names(placed.parent) == ["big.onnx.data", "model.onnx"]
    assert OnnxRuntimeModel(placed).run({"x": np.zeros((2, 3), np.float32)})["y"].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(TritonOptions(max_batch_size=-1), "max_batch_size is -1; expected at least 0", id="batch"),
        pytest.param(TritonOptions(queue_delay=-1), "queue_delay is -1", id="delay"),
        pytest.param(TritonOptions(instances=0), "instances is 0; expected at least 1", id="instances"),
        pytest.param(TritonOptions(preferred_batch_sizes=(64,)), "size 64 .* expected 1 to .* is 32", id="preferred"),
        pytest.param(TritonOptions(device="tpu"), "'tpu' is unknown", id="device"),  # type: ignore[arg-type]
        pytest.param(TritonOptions(device="cpu", tensorrt=True), "needs a GPU", id="tensorrt-on-the-cpu"),
    ],
)
def test_options_that_the_server_would_refuse(
    tmp_path: Path, exported: Path, options: TritonOptions, says: str
) -> None:
    with pytest.raises(ExportError, match=says):
        triton_repository(exported, tmp_path / "m", options)
    assert not list(tmp_path.iterdir())


def test_types_that_the_server_does_not_take(tmp_path: Path) -> None:
    file = write(tmp_path / "m.onnx", {"x": ["batch"]}, {"y": ["batch"]}, TensorProto.COMPLEX64)
    with pytest.raises(ExportError, match="x is of the type COMPLEX64"):
        triton_repository(file, tmp_path / "m")


def test_what_is_there_stays(tmp_path: Path, exported: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").touch()
    with pytest.raises(OutputError, match=r"is there already.*--new-version"):
        triton_repository(exported, tmp_path / "m")
    with pytest.raises(OutputError, match=r"holds no config.pbtxt"):
        triton_repository(exported, tmp_path / "m", new_version=True)
    assert names(tmp_path / "m") == ["mine"]


def test_options_do_not_change_a_config_that_is_there(tmp_path: Path, exported: Path) -> None:
    triton_repository(exported, tmp_path / "m")
    with pytest.raises(ExportError, match="keeps the one"):
        triton_repository(exported, tmp_path / "m", TritonOptions(), new_version=True)


@pytest.mark.parametrize("content", [None, b"no protobuf", b""], ids=["missing", "text", "empty"])
def test_files_that_are_no_model(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "m.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"m\.onnx"):
        triton_repository(file, tmp_path / "m")


@pytest.mark.parametrize("new_version", [False, True], ids=["first", "second"])
def test_nothing_half_written(
    tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, new_version: bool
) -> None:
    if new_version:
        triton_repository(exported, tmp_path / "m")
    before = sorted(tmp_path.rglob("*"))

    def full(_source: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unit_fast.export.layout.shutil.copyfile", full)

    with pytest.raises(UnitFastError, match=r"cannot write .* No space left on device; nothing was changed"):
        triton_repository(exported, tmp_path / "m", new_version=new_version)

    assert sorted(tmp_path.rglob("*")) == before


def test_a_repository_that_is_not_there(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(OutputError, match="Is there a folder"):
        triton_repository(exported, tmp_path / "absent" / "m")
