"""ONNX signature and options ⇒ the config.pbtxt that Triton Inference Server reads.

Fields follow model_config.proto of triton-inference-server/common; TensorRT's follow the README of its
onnxruntime_backend.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from unit_fast.export.errors import ExportError
from unit_fast.export.onnx_file import metadata_of, open_onnx
from unit_fast.export.session import OPTIMIZED_KEY

if TYPE_CHECKING:
    import onnx

MODEL = "model.onnx"
Device = Literal["auto", "cpu", "cuda"]

_KINDS: dict[Device, str] = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}
_DTYPES = {
    "FLOAT": "TYPE_FP32",
    "FLOAT16": "TYPE_FP16",
    "DOUBLE": "TYPE_FP64",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
    "BOOL": "TYPE_BOOL",
}
_TENSORRT_PRECISIONS = {"fp16": "FP16", "int8": "INT8"}
_TENSORRT_WORKSPACE = 1 << 30  # bytes


@dataclass(frozen=True)
class TritonOptions:
    """What config.pbtxt says beyond what the file itself tells.

    Attributes:
        max_batch_size: the largest batch the server puts together; 0 serves each request by itself, for models with an
            input or output that has no batch dimension.
        preferred_batch_sizes: batches to wait for. None by default, as the server's guide advises unless some sizes
            are much faster than others.
        queue_delay: microseconds a request may wait for others to join its batch.
        device: where instances run: "cpu", "cuda", or "auto", which leaves it to the server.
        instances: number of instances (on a GPU: on each).
        tensorrt: run through TensorRT, with a profile for batches of 1 to ``max_batch_size``; not on the CPU.
    """

    max_batch_size: int = 32
    preferred_batch_sizes: tuple[int, ...] = ()
    queue_delay: int = 100
    device: Device = "auto"
    instances: int = 1
    tensorrt: bool = False

    def check(self) -> None:
        """Raise ExportError for values that the server would refuse."""
        if self.device not in get_args(Device):
            raise ExportError(f"device={self.device!r} is unknown; expected one of {', '.join(get_args(Device))}")
        for name, value, least in (
            ("max_batch_size", self.max_batch_size, 0),
            ("queue_delay", self.queue_delay, 0),
            ("instances", self.instances, 1),
        ):
            if value < least:
                raise ExportError(f"{name} is {value}; expected at least {least}")
        wrong = [size for size in self.preferred_batch_sizes if not 1 <= size <= self.max_batch_size]
        if wrong:
            raise ExportError(
                f"the preferred batch size {wrong[0]} is none the server can make; expected 1 to max_batch_size, which "
                f"is {self.max_batch_size}"
            )
        if self.tensorrt and self.device == "cpu":
            raise ExportError('tensorrt=True needs a GPU; use device="cuda" or "auto"')


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an ONNX file.

    Attributes:
        name: of the tensor.
        data_type: as Triton calls it.
        shape: a dimension that may vary is −1.
    """

    name: str
    data_type: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.data_type} {list(self.shape)}"


@dataclass(frozen=True)
class Signature:
    """What the server has to know of an ONNX file.

    Attributes:
        inputs: in the order of the file.
        outputs: in the order of the file.
        precision: that it was exported in; "fp32" where the file does not say.
        data_files: names of the files beside it that hold its tensors.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    precision: str
    data_files: tuple[str, ...]


def read_signature(file: Path) -> Signature:
    """Read inputs, outputs and precision from an ONNX file.

    Raises:
        DataError: there is no such file, or it is no ONNX model.
        ExportError: a tensor has a type or a rank that Triton does not take, or the file is for one processor.
        BackendUnavailableError: onnx is not installed.
    """
    model = open_onnx(file)
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    constants = {tensor.name for tensor in model.graph.initializer}
    data_files = {ExternalDataInfo(tensor).location for tensor in model.graph.initializer if uses_external_data(tensor)}
    metadata = metadata_of(model)
    if OPTIMIZED_KEY in metadata:
        raise ExportError(
            f"{file} was optimised for {metadata[OPTIMIZED_KEY]}, which the server need not be; give the file it was "
            "made of"
        )
    return Signature(
        inputs=tuple(_tensor_info(value) for value in model.graph.input if value.name not in constants),
        outputs=tuple(_tensor_info(value) for value in model.graph.output),
        precision=metadata.get("unit_fast.precision", "fp32"),
        data_files=tuple(sorted(data_files)),
    )


def _tensor_info(value: "onnx.ValueInfoProto") -> TensorInfo:
    from onnx import TensorProto

    tensor = value.type.tensor_type
    found = TensorProto.DataType.Name(tensor.elem_type)
    data_type = _DTYPES.get(found)
    if data_type is None or not tensor.HasField("shape"):
        what = f"of the type {found}" if data_type is None else "of unknown rank"
        raise ExportError(f"{value.name} is {what}, which the ONNX Runtime of Triton Inference Server cannot serve")
    return TensorInfo(
        value.name,
        data_type,
        tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim),
    )


def triton_config(name: str, signature: Signature, options: TritonOptions) -> str:
    """The text of config.pbtxt for the model ``name``; ``options`` have been checked.

    Raises:
        ExportError: an input or output has no batch dimension, and batches are asked for.
    """
    batched = options.max_batch_size > 0
    if batched:
        _require_batches(signature)
    lines = [
        f"name: {json.dumps(name, ensure_ascii=False)}",
        'backend: "onnxruntime"',
        'platform: "onnxruntime_onnx"',
        f'default_model_filename: "{MODEL}"',
        f"max_batch_size: {options.max_batch_size}",
    ]
    for field, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        for tensor in tensors:
            lines += [f"{field} {{", *_tensor_lines(tensor, batched), "}"]
    if batched:
        preferred = [f"  preferred_batch_size: {list(options.preferred_batch_sizes)}"]
        lines += [
            "dynamic_batching {",
            *(preferred if options.preferred_batch_sizes else []),
            f"  max_queue_delay_microseconds: {options.queue_delay}",
            "}",
        ]
    lines += ["instance_group {", f"  kind: {_KINDS[options.device]}", f"  count: {options.instances}", "}"]
    if options.tensorrt:
        lines += _tensorrt_lines(signature, options.max_batch_size)
    return "\n".join(lines) + "\n"


def _require_batches(signature: Signature) -> None:
    for tensor in (*signature.inputs, *signature.outputs):
        if not tensor.shape or tensor.shape[0] != -1:
            raise ExportError(
                f"{tensor.name} has the shape {list(tensor.shape)}, without a batch dimension in front, so the server "
                "cannot put requests together; max_batch_size=0 serves them one by one"
            )


def _tensor_lines(tensor: TensorInfo, batched: bool) -> list[str]:
    shape = tensor.shape[1:] if batched else tensor.shape
    # The server has no tensors of rank 0: those are declared as [1] and reshaped.
    reshape = [] if shape else ["  reshape { shape: [] }"]
    return [
        f"  name: {json.dumps(tensor.name, ensure_ascii=False)}",
        f"  data_type: {tensor.data_type}",
        f"  dims: {list(shape or (1,))}",
        *reshape,
    ]


def _tensorrt_lines(signature: Signature, max_batch_size: int) -> list[str]:
    parameters = {
        "max_workspace_size_bytes": str(_TENSORRT_WORKSPACE),
        "precision_mode": _TENSORRT_PRECISIONS.get(signature.precision, "FP32"),
    }
    # Without a profile, an engine is built anew for every batch size that comes along, minutes each.
    if max_batch_size and all(-1 not in tensor.shape[1:] for tensor in signature.inputs):
        for bound, batch in (("min", 1), ("opt", max_batch_size), ("max", max_batch_size)):
            parameters[f"trt_profile_{bound}_shapes"] = ",".join(
                f"{tensor.name}:{_dimensions((batch, *tensor.shape[1:]))}" for tensor in signature.inputs
            )
    return [
        "optimization {",
        "  execution_accelerators {",
        "    gpu_execution_accelerator {",
        '      name: "tensorrt"',
        *(
            f'      parameters {{ key: "{key}" value: {json.dumps(value, ensure_ascii=False)} }}'
            for key, value in sorted(parameters.items())
        ),
        "    }",
        "  }",
        "}",
    ]


def _dimensions(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
