"""The "onnxruntime" backend: the graph exported in memory's place, a temporary file, and run by ONNX Runtime."""

import importlib.util
import logging
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.bounds import Bounds
from unit_fast.capture import ONE_AT_A_TIME
from unit_fast.errors import BackendUnavailableError, DataError, ParityError, UnitFastError
from unit_fast.export.session import OnnxRuntimeModel
from unit_fast.runtime.agreement import difference, judgeable
from unit_fast.runtime.calls import Call
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.eager import Eager
from unit_fast.runtime.explain import SiteNote
from unit_fast.runtime.flat import FlatGraph, require_devices
from unit_fast.runtime.program import Program

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_logger = logging.getLogger(__name__)


class OnnxSession:
    """Runs the graph in ONNX Runtime on the CPU, with as many threads as torch has; for inference only.

    With ``calibration_data``, batches (x, y) or x of clean samples, it runs in int8. Integers do not agree with the
    reference to its last digits; the export compares predictions instead. Counting stays in float32.
    """

    def __init__(self, program: Program, calibration_data: Iterable[Any] | None = None) -> None:
        self._program = program
        self._output = SessionGraph(program.module, program.bounds, program.example, calibration_data)
        # The export lets nothing read an activation past its clamp, as counting must.
        counter = Compiled if Compiled.unavailable(torch.device("cpu"), torch.float32) is None else Eager
        self._counter: Compiled | Eager = counter(program)

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why ONNX Runtime cannot run the graph."""
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            return f"{' and '.join(missing)} cannot be imported; install unit_fast[onnxruntime]"
        if device.type != "cpu":
            return "this backend computes on the CPU; on CUDA use 'auto', or export_onnx and OnnxRuntimeModel"
        if dtype != torch.float32:
            return f"this backend takes models in float32 and this one is in {dtype}; use 'auto'"
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        return self._output(args, kwargs)

    def monitor(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The model's output, and the number of activations above their bound, (N, sites): by torch.compile."""
        return self._counter.monitor(*args, **kwargs)

    def inspect(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor, Tensor]:
        """The model's output, the counts, and the largest excess over a bound, (N, sites) each: by torch.compile."""
        return self._counter.inspect(*args, **kwargs)

    def warmup(self, batch_sizes: Sequence[int], monitor: bool = False) -> None:
        """Run these batch sizes, and compare with the reference."""
        for size in batch_sizes:
            call = self._program.example.of_size(size)
            self(*call.args, **call.kwargs)
            if monitor:
                self.monitor(*call.args, **call.kwargs)

    def explain(self) -> list[SiteNote]:
        """How each clamp was written, and why so."""
        return [
            SiteNote(site, f"{form} after the activation", "ONNX Runtime", why)
            for site, form, why in self._output.forms
        ]


class SessionGraph:
    """A graph as an ONNX Runtime session, called as the graph's module; meets it at every new batch size.

    Attributes:
        forms: by site how its clamp is written, and why.
    """

    def __init__(
        self, module: fx.GraphModule, bounds: Bounds, example: Call, calibration_data: Iterable[Any] | None = None
    ) -> None:
        from unit_fast.export.pipeline import Options, export_graph

        self._flat = FlatGraph(module)
        _logger.info("exporting the sanitised graph for ONNX Runtime")
        self._exact = calibration_data is None
        options = Options("auto", "fp32" if self._exact else "int8", opset=20, verify=False)
        try:
            with ONE_AT_A_TIME, tempfile.TemporaryDirectory(prefix="unit_fast-") as folder:
                file = Path(folder) / "model.onnx"
                report = export_graph(module, bounds, file, example.kwargs or example.args, options, calibration_data)
                self._session = OnnxRuntimeModel(file, threads=torch.get_num_threads())
        except (DataError, ParityError):
            raise
        except OSError as error:
            raise BackendUnavailableError(
                f"ONNX Runtime needs a temporary file for the sanitised graph, and none can be written: {error}; point "
                "TMPDIR to a folder with room, or use another backend"
            ) from error
        except UnitFastError as error:
            raise BackendUnavailableError(f"ONNX Runtime cannot run the sanitised graph: {error}") from error
        self.forms = [(site.site, site.form, site.reason) for site in report.sites]
        self._devices = [tensor.device for tensor in self._flat.tensors(example.args, example.kwargs)]
        self._known: set[tuple[tuple[torch.Size, torch.dtype, torch.device], ...]] = set()

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the graph's module returns.

        Raises:
            DataError: ONNX Runtime does not take these inputs.
            ParityError: it disagrees with the reference.
        """
        inputs = self._flat.flatten(args, kwargs)
        key = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
        if key in self._known:
            return self._flat.unflatten(self._run(inputs), inputs)
        require_devices(inputs, self._devices)
        with torch.no_grad():
            expected = self._flat.module(*inputs)  # inputs that do not fit fail here, in the model's own words
        if any(tensor.numel() == 0 for tensor in inputs):
            return self._flat.unflatten(expected, inputs)
        outputs = self._run(inputs)
        if not judgeable(expected):
            return self._flat.unflatten(outputs, inputs)
        found = difference(outputs, expected) if self._exact else None
        if found is not None:
            raise ParityError(
                "ONNX Runtime does not compute what the sanitised graph computes on inputs "
                f"{[tuple(tensor.shape) for tensor in inputs]}: {found}; "
                "use another backend, and report it with the versions that unit-fast env shows"
            )
        self._known.add(key)
        return self._flat.unflatten(outputs, inputs)

    def _run(self, inputs: list[Tensor]) -> list[Any]:
        arrays = (tensor.detach().numpy() for tensor in inputs)
        values = self._session.run(dict(zip(self._session.input_names, arrays, strict=True))).values()
        return [value for value, kept in zip(values, self._flat.tensor_outputs, strict=True) if kept]
