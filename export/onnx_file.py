"""Opening an ONNX file that a user named."""

from pathlib import Path
from typing import TYPE_CHECKING

from unit_fast.errors import BackendUnavailableError, DataError

if TYPE_CHECKING:
    import onnx


def open_onnx(path: Path) -> "onnx.ModelProto":
    """The model in a file, without tensors that lie in another one.

    Raises:
        DataError: the file is missing, cannot be read, or is no ONNX model.
        BackendUnavailableError: onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise BackendUnavailableError(f"{path} is read by onnx ({error}); install unit_fast[onnx]") from error
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; expected an ONNX model") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; expected an ONNX model") from error
    except DecodeError as error:
        raise DataError(f"{path} is no ONNX model: {error}") from error
    if not model.graph.output:
        raise DataError(f"{path} is no ONNX model: it has no outputs")
    return model


def metadata_of(model: "onnx.ModelProto") -> dict[str, str]:
    """What the file says of itself, by key."""
    return {entry.key: entry.value for entry in model.metadata_props}
