"""An ONNX file in OpenVINO on the CPU."""

import functools
import threading
from collections import deque
from collections.abc import Sequence
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
    """Runs an ONNX file in OpenVINO, in float32 arithmetic; several threads may call it at once.

    Args:
        path: the file.
        threads: of one call.

    Attributes:
        input_names: in the order of the file.

    Raises:
        BackendUnavailableError: OpenVINO is missing.
        DataError: OpenVINO cannot load the file.
    """

    def __init__(self, path: str | PathLike[str], *, threads: int = 1) -> None:
        core = shared_core()
        self._new_tensor = load_runtime("openvino").Tensor
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # processors with bfloat16 arithmetic would be given that by default
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned, the threads of several processes sit on the same cores: 25 ms a call for 13, in two with one each.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = core.read_model(str(path))
            self.input_names: tuple[str, ...] = tuple(value.any_name for value in model.inputs)
            self._names = [tuple(sorted(value.names)) for value in model.outputs]
            self._dtypes = [value.element_type.to_dtype() for value in model.inputs]
            self._compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise DataError(f"OpenVINO cannot load {path}: {_first_line(error)}") from error
        # A request serves one call at a time; there come to be as many as there are calls at once.
        self._idle: deque[Any] = deque()

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """All outputs by name, for inputs by name.

        Raises:
            DataError: OpenVINO refuses the inputs or fails.
        """
        if set(inputs) != set(self.input_names):
            raise DataError(f"got the inputs {sorted(inputs)}, the file takes {sorted(self.input_names)}")
        values = self.outputs([inputs[name] for name in self.input_names])
        return {name: value for value, names in zip(values, self._names, strict=True) for name in names}

    def outputs(self, inputs: Sequence[np.ndarray]) -> list[Tensor]:
        """All outputs, for all inputs, in the order of the file; in memory of their own.

        Raises:
            DataError: as ``run``.
        """
        given = [value.dtype for value in inputs]
        if given != self._dtypes:  # OpenVINO would convert them without a word
            got, expected = (", ".join(map(str, dtypes)) for dtypes in (given, self._dtypes))
            raise DataError(f"got inputs of {got}, the file takes {expected}; convert them first")
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            # Given to infer(), inputs are looked at one by one in Python, for 50 µs a call and more.
            for place, value in enumerate(inputs):
                request.set_input_tensor(place, self._tensor(value))
            results = request.infer(share_outputs=False)  # copied: the next call writes over the request's own
        except RuntimeError as error:
            shapes = [tuple(value.shape) for value in inputs]
            raise DataError(f"OpenVINO failed on inputs of shapes {shapes}: {_first_line(error)}") from error
        finally:
            self._idle.append(request)
        return [torch.from_numpy(value) for value in results.values()]

    def _tensor(self, value: np.ndarray) -> Any:
        # Read where it lies, if it can be; what is not to be written has to be copied, though nobody writes it.
        in_place = value.flags.c_contiguous and value.flags.writeable
        return self._new_tensor(value, shared_memory=in_place)

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
