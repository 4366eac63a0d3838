"""An ONNX file as a callable: torch tensors in, torch tensors out."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unit_fast.errors import BackendUnavailableError, DataError
from unit_fast.export.runtimes import load_runtime

STRUCTURE_KEY = "unit_fast.output_structure"
OPTIMIZED_KEY = "unit_fast.optimized_for"
EXCESS_KEY = "unit_fast.excess"
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


class OnnxRuntimeModel:
    """Runs an ONNX file in ONNX Runtime, called like the model it was exported from.

    Args:
        path: the file.
        device: "cpu" or "cuda"; where ONNX Runtime computes. Results always come back on the CPU.
        threads: of one operator; ONNX Runtime's own choice when omitted.
        optimize: False turns ONNX Runtime's graph optimisation off.
        spin: whether idle threads burn the processor while they wait. Off, since torch's threads want it too.

    Attributes:
        input_names: in the order of the call.
        output_names: in the order of the file.
        metadata: the file's metadata_props; ``unit_fast.*`` tell where it came from.
        excess: name of the output that measures samples; None in files that were exported without ``inspect=True``.

    Raises:
        BackendUnavailableError: ONNX Runtime is missing, or the device's provider does not really run.
        DataError: there is no such file, ONNX Runtime cannot load it, or it was optimised for another one.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        device: str = "cpu",
        threads: int | None = None,
        optimize: bool = True,
        spin: bool = False,
    ) -> None:
        runtime = load_runtime("onnxruntime")
        if not Path(path).is_file():
            raise DataError(f"there is no file {path}; expected an ONNX model")
        providers = _providers(runtime, device)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if not optimize:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:
            raise DataError(f"ONNX Runtime cannot load {path}: {error}") from error
        running = self.session.get_providers()
        if providers[0] not in running:
            # Asked for CUDA, ONNX Runtime logs a line and computes on the CPU.
            raise BackendUnavailableError(
                f"ONNX Runtime fell back to {', '.join(running)} where {providers[0]} was asked for; check the CUDA "
                'and cuDNN libraries of onnxruntime-gpu, or use device="cpu"'
            )
        self.input_names: tuple[str, ...] = tuple(value.name for value in self.session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(value.name for value in self.session.get_outputs())
        self._input_types = {value.name: value.type for value in self.session.get_inputs()}
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        _require_here(path, self.metadata.get(OPTIMIZED_KEY), device)
        structure, excess = (self.metadata.get(key) for key in (STRUCTURE_KEY, EXCESS_KEY))
        self._structure: Any = json.loads(structure) if structure else None
        inspected: dict[str, Any] = json.loads(excess) if excess else {}
        self.excess: str | None = inspected.get("output")
        self._thresholds: dict[str, float] = inspected.get("thresholds", {})

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Run the model.

        Args:
            args: inputs in the file's order, (N, ...) each.
            kwargs: inputs by name.

        Returns:
            What the exported model returned: a tensor, or tuples, lists and dicts of tensors, on the CPU. From files
            that do not tell, one tensor, or a dict by output name.

        Raises:
            DataError: inputs are missing, unknown, or of a shape or dtype that the file does not take.
        """
        return self._outputs_of(self.run(self._feed(args, kwargs)))

    def inspect(self, *args: Tensor, **kwargs: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """What a call returns, and what the file measures of each sample: ``{"excess": (N,)}``, float32.

        As :meth:`unit_fast.runtime.SanitizedModel.inspect`, of files that were exported with ``inspect=True``; of
        others the measures are empty.

        Raises:
            DataError: as of a call.
        """
        values = self.run(self._feed(args, kwargs))
        measures = {} if self.excess is None else {"excess": values[self.excess]}
        return self._outputs_of(values), measures

    def threshold(self, fpr: float = 0.01) -> float:
        """The excess that a clean sample exceeds with probability ``fpr`` at most, from the file's metadata.

        Raises:
            DataError: the file was not exported with ``inspect=True``, or holds no threshold for ``fpr``.
        """
        if self.excess is None:
            raise DataError("the file does not measure its samples; export it with inspect=True")
        if str(fpr) not in self._thresholds:
            raise DataError(
                f"the file holds no threshold for fpr={fpr}; expected one of {', '.join(self._thresholds) or 'none'} "
                "(n clean samples give those of 1 / (n + 1) and more); any other is to be had from the bounds, with "
                "sanitize(…).threshold"
            )
        return self._thresholds[str(fpr)]

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """All outputs by name, for inputs by name.

        Raises:
            DataError: ONNX Runtime refuses the inputs or fails.
        """
        try:
            outputs = self.session.run(None, inputs)
        except Exception as error:
            shapes = {name: tuple(value.shape) for name, value in inputs.items()}
            raise DataError(f"ONNX Runtime failed on inputs of shapes {shapes}: {error}") from error
        return {name: torch.from_numpy(value) for name, value in zip(self.output_names, outputs, strict=True)}

    def outputs(self, inputs: Sequence[np.ndarray]) -> list[Tensor]:
        """All outputs, for all inputs, each in the order of the file.

        Raises:
            DataError: as ``run``.
        """
        return list(self.run(dict(zip(self.input_names, inputs, strict=True))).values())

    def _outputs_of(self, values: dict[str, Tensor]) -> Any:
        """What the model returned, of all outputs by name."""
        if self._structure is not None:
            return _nest(self._structure, values)
        return next(iter(values.values())) if len(values) == 1 else values

    def _feed(self, args: Sequence[Tensor], kwargs: dict[str, Tensor]) -> dict[str, np.ndarray]:
        if len(args) > len(self.input_names):
            raise DataError(f"got {len(args)} inputs, the file takes {len(self.input_names)}: {self.input_names}")
        given = dict(zip(self.input_names, args, strict=False)) | kwargs
        if set(given) != set(self.input_names):
            raise DataError(f"got the inputs {sorted(given)}, the file takes {sorted(self.input_names)}")
        feed = {}
        for name, tensor in given.items():
            expected = _DTYPES.get(self._input_types[name])
            if expected is not None and tensor.dtype != expected:
                raise DataError(f"input {name} is {tensor.dtype}, the file takes {expected}; convert it first")
            feed[name] = tensor.detach().cpu().contiguous().numpy()
        return feed


def _providers(runtime: Any, device: str) -> tuple[str, ...]:
    if device not in _PROVIDERS:
        raise BackendUnavailableError(f"device={device!r} is unknown to this wrapper; expected one of {[*_PROVIDERS]}")
    providers = _PROVIDERS[device]
    available = runtime.get_available_providers()
    if providers[0] not in available:
        raise BackendUnavailableError(
            f'device="{device}" needs the {providers[0]} of ONNX Runtime; this build has {", ".join(available)}: '
            f"install unit_fast[{'onnxruntime-gpu' if device == 'cuda' else 'onnxruntime'}]"
        )
    return providers


def _require_here(path: str | PathLike[str], made_for: str | None, device: str) -> None:
    """Raise DataError for a file with constants in the layout of another processor: it would give wrong numbers."""
    if made_for is None:
        return
    if device != "cpu":
        raise DataError(f"{path} was optimised for the CPU, {made_for}; on {device} run the file it was made of")
    try:
        from unit_fast.export.optimized import here
    except ImportError as error:
        raise BackendUnavailableError(
            f"{path} was optimised for {made_for}; onnx is needed to tell whether that is this machine ({error}): "
            "install unit_fast[onnxruntime]"
        ) from error
    if (this := here()) != made_for:
        raise DataError(f"{path} was optimised for {made_for}, and this is {this}; run optimize_onnx here")


def _nest(structure: Any, values: dict[str, Tensor]) -> Any:
    if structure is None or isinstance(structure, str):
        return None if structure is None else values[structure]
    ((kind, content),) = structure.items()
    if kind == "dict":
        return {key: _nest(item, values) for key, item in content.items()}
    items = [_nest(item, values) for item in content]
    return tuple(items) if kind == "tuple" else items
