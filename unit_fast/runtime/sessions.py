"""The backends that export the graph and run the file on the CPU: "onnxruntime" and "openvino"."""

import importlib.util
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from unit_fast.errors import BackendUnavailableError, DataError, FallbackWarning, UnitFastError
from unit_fast.export.openvino_model import OpenVinoModel
from unit_fast.export.session import OnnxRuntimeModel
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.eager import Eager
from unit_fast.runtime.explain import SiteNote
from unit_fast.runtime.exported import ExportedFile, ExportedGraph, exported
from unit_fast.runtime.program import Program


class ExportedSession:
    """Runs the exported graph in a runtime on the CPU, with as many threads as torch has; for inference only.

    Args:
        program: what it runs.
        file: of its graph; exported when omitted.

    Attributes:
        runtime: its name.
        target: the same, for the export.
        packages: what it needs; ``unit_fast[target]`` brings them.
        model: what runs a file in it.
    """

    runtime: ClassVar[str]
    target: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    model: ClassVar[type[OnnxRuntimeModel] | type[OpenVinoModel]]

    def __init__(self, program: Program, file: ExportedFile | None = None) -> None:
        self._program = program
        with exported(program, self.target) if file is None else nullcontext(file) as written:
            try:
                session = self.model(self._prepared(written), threads=torch.get_num_threads())
            except DataError as error:
                raise BackendUnavailableError(f"{self.runtime} cannot run the sanitised graph: {error}") from error
        self._forms = written.forms
        self._output = ExportedGraph(program, written, session, self.runtime)
        # The export lets nothing read an activation past its clamp, as counting must.
        counter = Compiled if Compiled.unavailable(torch.device("cpu"), torch.float32) is None else Eager
        self._counter: Compiled | Eager = counter(program)

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why the runtime cannot run the graph."""
        missing = [name for name in cls.packages if importlib.util.find_spec(name) is None]
        if missing:
            return f"{' and '.join(missing)} cannot be imported; install unit_fast[{cls.target}]"
        if device.type != "cpu":
            return "this backend computes on the CPU; on CUDA use 'auto', or export_onnx and OnnxRuntimeModel"
        if dtype != torch.float32:
            return f"this backend takes models in float32 and this one is in {dtype}; use 'auto'"
        return None

    def _prepared(self, written: ExportedFile) -> Path:
        """The file that the session runs."""
        return written.path

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

    def warm_inspect(self, batch_sizes: Sequence[int]) -> None:
        """Compile for these batch sizes, and compare with the reference."""
        self._counter.warm_inspect(batch_sizes)

    def explain(self) -> list[SiteNote]:
        """How each clamp was written, and why so."""
        return [SiteNote(site, f"{form} after the activation", self.runtime, why) for site, form, why in self._forms]


class OnnxSession(ExportedSession):
    """The "onnxruntime" backend: the graph as it is optimised for this processor. Idle threads do not spin."""

    runtime = "ONNX Runtime"
    target = "onnxruntime"
    packages = ("onnx", "onnxscript", "onnxruntime")
    model = OnnxRuntimeModel

    def _prepared(self, written: ExportedFile) -> Path:
        from unit_fast.export.optimized import optimize

        clamped_by = {form for _, form, _ in written.forms}
        if "min" not in clamped_by or written.meaning is not None or written.external_data:
            return written.path  # nothing to gain, or int8, or above 2 GB
        try:  # what it computes meets the reference like any file's
            return optimize(written.path, written.path.with_name("optimized.onnx"), verify=False).path
        except UnitFastError as error:
            warnings.warn(
                f"the graph runs as it is exported, and not optimised for this processor: {error}",
                FallbackWarning,
                stacklevel=4,
            )
            return written.path


class OpenVinoSession(ExportedSession):
    """The "openvino" backend, in float32 arithmetic also where the processor has bfloat16."""

    runtime = "OpenVINO"
    target = "openvino"
    packages = ("onnx", "onnxscript", "openvino")
    model = OpenVinoModel
