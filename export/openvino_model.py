"""An ONNX file in OpenVINO on the CPU: for the comparison with torch, and to see what it fuses."""

import functools
import threading
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.export.runtimes import load_runtime

_one_core = threading.Lock()


def shared_core() -> Any:
    """The one OpenVINO Core of this process, never let go of; use it wherever a file runs in this process.

    The CPU plugin of each Core (2026.4) gives the thread that first uses it a stack for signal handlers, and takes it
    away with the Core without looking whether it is still in use: after two Cores that end in the order they began, or
    one that ends in another thread, the next signal (Ctrl-C) is a segmentation fault.

    Raises:
        BackendUnavailableError: OpenVINO is missing.
    """
    with _one_core:
        return _core()


@functools.cache
def _core() -> Any:
    return load_runtime("openvino").Core()


class OpenVinoModel:
    """Runs an ONNX file in OpenVINO, in float32 arithmetic on one thread.

    Args:
        path: the file.

    Attributes:
        input_names: in the order of the file.

    Raises:
        BackendUnavailableError: OpenVINO is missing.
        DataError: OpenVINO cannot load the file.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        core = shared_core()
        # Processors with bfloat16 arithmetic would be given that by default.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        try:
            model = core.read_model(str(path))
            self.input_names: tuple[str, ...] = tuple(value.any_name for value in model.inputs)
            self._names = [tuple(sorted(value.names)) for value in model.outputs]
            self._compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise DataError(f"OpenVINO cannot load {path}: {_first_line(error)}") from error

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """All outputs by name, for inputs by name.

        Raises:
            DataError: OpenVINO refuses the inputs or fails.
        """
        try:
            results = self._compiled(inputs)
        except RuntimeError as error:
            shapes = {name: tuple(value.shape) for name, value in inputs.items()}
            raise DataError(f"OpenVINO failed on inputs of shapes {shapes}: {_first_line(error)}") from error
        return {
            name: torch.from_numpy(np.array(results[index]))
            for index, names in enumerate(self._names)
            for name in names
        }

    def unfused(self) -> set[str]:
        """Names of the file's nodes that run as layers of their own, not as a part of another one."""
        alone = set()
        for node in self._compiled.get_runtime_model().get_ops():
            names = str(node.get_rt_info()["originalLayersNames"].astype(str)).split(",")
            alone |= set(names) if len(names) == 1 else set()
        return alone


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
