"""The "triton" backend: the fused graph, each operator by whatever was measured fastest, replayed as a CUDA graph."""

import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unit_fast.errors import BackendUnavailableError, FallbackWarning, ParityError
from unit_fast.runtime.agreement import difference
from unit_fast.runtime.cuda_graphs import GraphCache, cuda_graphs
from unit_fast.runtime.explain import SiteNote
from unit_fast.runtime.flat import require_devices
from unit_fast.runtime.kernel_graph import KernelCall, KernelGraph
from unit_fast.runtime.program import Program

if TYPE_CHECKING:
    from unit_fast.kernels.dispatch import Choice, Dispatcher
    from unit_fast.kernels.dispatch.problem import Problem

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_logger = logging.getLogger(__name__)
LEAST_CAPABILITY = (8, 0)  # the oldest the kernels are compiled for in the tests


class Fused:
    """Runs the sanitised graph fused (``fusion``), in channels_last, by the kernels that ``dispatch`` chooses.

    ``sanitize`` gives it to GPUs only. Made by hand it runs on a CPU too: by the references, or, where TRITON_INTERPRET
    is set, in Triton's interpreter, without CUDA graphs and without measuring, for tests.
    """

    def __init__(self, program: Program, dispatcher: "Dispatcher | None" = None) -> None:
        self._program = program
        self._device = program.device
        self._dispatcher = dispatcher if dispatcher is not None else _dispatcher(self._device)
        self._lock = threading.Lock()
        self._plain = self._way(counting=False)
        self._counting: _Way | None = None

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why the kernels cannot run on ``device`` in ``dtype``."""
        if find_spec("triton") is None:
            return "Triton is not installed; install the triton that belongs to this torch"
        if dtype not in _DTYPES:
            return f"the kernels take float16, bfloat16 and float32, not {dtype}; choose one as dtype="
        if device.type != "cuda" or torch.version.cuda is None:
            return f"the kernels are made for NVIDIA GPUs, not for {device}; use 'compile' or 'eager'"
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            return f"the GPU has compute capability {capability[0]}.{capability[1]}; the kernels need 8.0 or newer"
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        return self._plain.run(args, kwargs)

    def monitor(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The model's output, and the number of activations above their bound, (N, sites): of the same pass."""
        output, counts = self._monitoring().run(args, kwargs)
        return output, counts

    def warmup(self, batch_sizes: Sequence[int], monitor: bool = False) -> None:
        """Measure, verify, compile and capture for these batch sizes.

        Raises:
            ParityError: the fused graph does not give what the sanitised graph gives.
        """
        self.compile_ahead(batch_sizes, monitor)
        ways = [self._plain, *([self._monitoring()] if monitor else [])]
        for size in sorted(set(batch_sizes), reverse=True):  # the largest first: its memory serves the others
            call = self._program.example.of_size(size)
            for way in ways:
                way.warm(call.args, call.kwargs, size)
        self._dispatcher.release()

    def compile_ahead(self, batch_sizes: Sequence[int], monitor: bool = False) -> None:
        """Compile on all cores what ``warmup`` will time for these sizes; it does so itself for those it is given."""
        calls = [self._program.example.of_size(size) for size in sorted(set(batch_sizes), reverse=True)]
        ways = [self._plain, *([self._monitoring()] if monitor else [])]
        problems = (problem for way in ways for call in calls for problem in way.problems(call.args, call.kwargs))
        try:
            self._dispatcher.compile_ahead(problems)
        except Exception as error:  # noqa: BLE001 - warming up meets it again, if it is more than memory that is short
            _logger.warning("kernels are compiled one by one: %s: %s", type(error).__name__, error)

    def explain(self) -> list[SiteNote]:
        """Every fused operator with a clamp: what is in it, what runs it at each batch size, and why."""
        return [_note(call) for call in self._plain.graph.calls if call.site is not None]

    def _monitoring(self) -> "_Way":
        if self._counting is None:
            with self._lock:
                if self._counting is None:
                    self._counting = self._way(counting=True)
        return self._counting

    def _way(self, counting: bool) -> "_Way":
        graph = KernelGraph(self._program.module, self._dispatcher, counting)
        graphs = cuda_graphs(graph, graph.flat.batched_inputs, self._device) if self._device.type == "cuda" else None
        reference = partial(_flat_reference, self._program, counting)
        example = graph.flat.tensors(self._program.example.args, self._program.example.kwargs)
        inputs = [tensor.device for tensor in example]
        return _Way(graph, graphs, self._device, inputs, reference, counting, self._program.dtype)


class _Way:
    """One graph with its CUDA graphs: that of the output, or that which also counts."""

    def __init__(
        self,
        graph: KernelGraph,
        graphs: GraphCache | None,
        device: torch.device,
        inputs: Sequence[torch.device],
        reference: Callable[..., Any],
        counting: bool,
        dtype: torch.dtype,
    ) -> None:
        self.graph = graph
        self._graphs = graphs
        self._device = device
        self._inputs = inputs
        self._reference = reference
        self._counting = counting
        self._dtype = dtype
        self._verified: set[int] = set()

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call; the first of each batch size is compared with the reference.

        Raises:
            DataError: an input is on another device than the graph.
            ParityError: the result is not what the reference gives.
        """
        tensors = self.graph.flat.tensors(args, kwargs)
        require_devices(tensors, self._inputs)
        size = self._size(tensors)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False), _device_guard(self._device):
            outputs = (self._graphs or self.graph)(tensors)
            result = self.graph.flat.unflatten(outputs[:-1] if self._counting else outputs, tensors)
            if self._counting:
                result = result, outputs[-1]
            if size not in self._verified and not _capturing(self._device):
                self._verify(result, self._reference(*args, **kwargs), size)
        return result

    def warm(self, args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> None:
        """Choose the kernels for a batch size, capture it, and compare."""
        tensors = self.graph.flat.tensors(args, kwargs)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False), _device_guard(self._device):
            self.graph.tune(tensors, size)
            if self._graphs is not None:
                self._capture(self._graphs, tensors)
        self._verified.discard(size)
        self.run(args, kwargs)

    def problems(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "list[Problem]":
        """What the graph's operators pose in such a call."""
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False), _device_guard(self._device):
            return self.graph.problems(self.graph.flat.tensors(args, kwargs))

    def _capture(self, graphs: GraphCache, tensors: Sequence[Tensor]) -> None:
        """Capture; go on without graphs where the network does what none can hold, such as a copy from the host."""
        try:
            graphs.warm(tensors)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._graphs = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"the fused graph runs kernel by kernel, which is slower: a CUDA graph of it fails: {reason}",
                FallbackWarning,
                stacklevel=5,
            )

    def _size(self, tensors: Sequence[Tensor]) -> int:
        batched = self.graph.flat.batched_inputs
        return tensors[batched[0]].shape[0] if batched else 0

    def _verify(self, result: Any, expected: Any, size: int) -> None:
        found = difference(result, expected, (-1,) if self._counting else (), self._dtype)
        if found is not None:
            raise ParityError(
                f"the fused graph does not agree with the sanitised graph at batch size {size}: {found}. "
                "Use backend='compile' or 'eager', and report the model"
            )
        self._verified.add(size)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _flat_reference(program: Program, counting: bool, *args: Any, **kwargs: Any) -> Any:
    return (program.counting if counting else program.module)(*args, **kwargs)


def _device_guard(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _dispatcher(device: torch.device) -> "Dispatcher":
    from unit_fast.kernels.dispatch import dispatcher_for

    try:
        return dispatcher_for(device)
    except ValueError as error:
        raise BackendUnavailableError(str(error)) from error


def _note(call: KernelCall) -> SiteNote:
    assert call.site is not None, "only clamps have sites"
    fused = " + ".join(call.fused)
    if not call.choices:
        return SiteNote(call.site, fused, "chosen when it is called", "warmup() has not run: nothing was measured")
    choices = sorted(call.choices.items())
    runs = _by_batch([(batch, choice.candidate.name) for batch, choice in choices])
    return SiteNote(call.site, fused, runs, _by_batch([(batch, _why(choice)) for batch, choice in choices]))


def _why(choice: "Choice") -> str:
    return choice.why + "".join(f"; without {name}: {reason}" for name, reason in choice.dropped.items())


def _by_batch(said: Sequence[tuple[int, str]]) -> str:
    """What is said of each batch size, once where it is the same: "batch 1, 32: this; batch 256: that"."""
    sizes: dict[str, list[str]] = {}
    for batch, text in said:
        sizes.setdefault(text, []).append(str(batch))
    if len(sizes) == 1:
        return said[0][1]
    return "; ".join(f"batch {', '.join(batches)}: {text}" for text, batches in sizes.items())
