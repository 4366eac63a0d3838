"""The runtimes that exported files are run in: loaded when they are needed, and missed by name."""

import importlib
from typing import Any, Literal

from unit_fast.errors import BackendUnavailableError

_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_INSTALL = {
    "onnxruntime": "unit_fast[onnxruntime], or unit_fast[onnxruntime-gpu] on a CUDA machine, never both",
    "openvino": "unit_fast[openvino]",
}


def load_runtime(module: Literal["onnxruntime", "openvino"]) -> Any:
    """The module of a runtime.

    Raises:
        BackendUnavailableError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendUnavailableError(
            f"{_NAMES[module]} is needed here and cannot be imported ({error}); install {_INSTALL[module]}"
        ) from error
