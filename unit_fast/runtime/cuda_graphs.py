"""CUDA graphs by batch size: a call without a launch from Python, for sizes that were captured beforehand.

Nothing is captured while requests are served. A size that was not captured is padded to the next one that was, if that
is at most twice as large and the graph was seen to keep samples apart; any other call runs launch by launch.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from unit_fast.runtime.agreement import difference

_logger = logging.getLogger(__name__)

Function = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]

MOST_GRAPHS = 16
"""Batch sizes kept for a model; the least recently used goes first. They share one pool of memory, which is about what
the largest of them takes, and each adds its inputs and outputs."""
MOST_PADDING = 2.0
"""A captured graph is used for batches down to its own size divided by this."""


class Captured(Protocol):
    """A function captured at fixed sizes."""

    inputs: Sequence[Tensor]  # what it reads: its own memory, to be filled before
    outputs: Sequence[Tensor]  # what it writes: to be copied after

    def replay(self) -> None:
        """Compute outputs from inputs, on the current stream."""


class Fence(Protocol):
    """Puts the work of one replay after that of the one before, on whatever streams they are."""

    def enter(self) -> None:
        """Before a replay."""

    def leave(self) -> None:
        """After it."""


class GraphCache:
    """One function's captured graphs, by batch size; safe from several threads and streams.

    Args:
        function: what is computed, of tensors to tensors.
        batched_inputs: which of its tensors have the batch first; the others must keep their shape.
        capture: makes a graph of ``function`` for tensors like those given, which it copies.
        fence: orders replays, since all of them share memory.
        capturing: whether the caller is capturing a graph of his own, within which none of these can run.
        limit: how many graphs are kept.
    """

    def __init__(
        self,
        function: Function,
        batched_inputs: Sequence[int],
        capture: Callable[[Function, Sequence[Tensor]], Captured],
        fence: Fence,
        capturing: Callable[[], bool],
        limit: int = MOST_GRAPHS,
    ) -> None:
        self._function = function
        self._batched = tuple(batched_inputs)
        self._capture = capture
        self._fence = fence
        self._capturing = capturing
        self._limit = limit
        self._graphs: OrderedDict[int, Captured] = OrderedDict()
        self._paddable: set[int] = set()
        self._lock = threading.Lock()

    @property
    def sizes(self) -> list[int]:
        """The batch sizes that are captured, the least recently used first."""
        return list(self._graphs)

    def warm(self, tensors: Sequence[Tensor]) -> None:
        """Capture for the batch size of ``tensors``, unless that was done."""
        size = self._size(tensors)
        with self._lock:
            if size is None or size in self._graphs:
                return
            captured = self._capture(self._function, tensors)
            self._graphs[size] = captured
            if self._keeps_samples_apart(captured, tensors, size):
                self._paddable.add(size)
            while len(self._graphs) > self._limit:
                dropped, _ = self._graphs.popitem(last=False)
                self._paddable.discard(dropped)
                _logger.warning(
                    "the CUDA graph for batches of %d is dropped: %d are kept; warm up fewer sizes, smaller ones are "
                    "padded to larger",
                    dropped,
                    self._limit,
                )

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What ``function`` gives, in memory of the caller's own."""
        size = self._size(tensors)
        if size is None or not self._graphs or self._capturing():
            return self._function(tensors)
        with self._lock:
            captured_size = self._fitting(size)
            if captured_size is None or not self._alike(self._graphs[captured_size], tensors):
                captured = None
            else:
                captured = self._graphs[captured_size]
                self._graphs.move_to_end(captured_size)
                return self._replayed(captured, tensors, size)
        return self._function(tensors)

    def _size(self, tensors: Sequence[Tensor]) -> int | None:
        sizes = {tensors[index].shape[0] for index in self._batched if tensors[index].ndim}
        return sizes.pop() if len(sizes) == 1 else None

    def _fitting(self, size: int) -> int | None:
        if size in self._graphs:
            return size
        larger = [other for other in self._paddable if size < other <= MOST_PADDING * size]
        return min(larger, default=None)

    def _alike(self, captured: Captured, tensors: Sequence[Tensor]) -> bool:
        """Whether ``tensors`` are, but for the batch, what the graph was captured with."""
        return all(
            given.shape[batched:] == own.shape[batched:] and given.dtype == own.dtype and given.device == own.device
            for batched, given, own in (
                (int(index in self._batched), given, own)
                for index, (given, own) in enumerate(zip(tensors, captured.inputs, strict=True))
            )
        )

    def _replayed(self, captured: Captured, tensors: Sequence[Tensor], size: int) -> tuple[Tensor, ...]:
        self._fence.enter()
        for index, (given, own) in enumerate(zip(tensors, captured.inputs, strict=True)):
            (own[:size] if index in self._batched else own).copy_(given)
        captured.replay()
        full = captured.inputs[self._batched[0]].shape[0]
        outputs = tuple((output if size == full else output[:size]).clone() for output in captured.outputs)
        self._fence.leave()
        return outputs

    def _keeps_samples_apart(self, captured: Captured, tensors: Sequence[Tensor], size: int) -> bool:
        """Whether the first half of the outputs stays when the second half of the inputs changes.

        A network that mixes samples of a batch can't be padded.
        """
        if any(not output.ndim or output.shape[0] != size for output in captured.outputs) or size < 2:
            return False
        half = size // 2

        def scaled(index: int, tensor: Tensor) -> Tensor:
            if index not in self._batched or not tensor.is_floating_point():
                return tensor
            return torch.cat([tensor[:half], 3 * tensor[half:] + 1])

        first = self._replayed(captured, tensors, size)
        second = self._replayed(captured, [scaled(index, tensor) for index, tensor in enumerate(tensors)], size)
        pairs = [(after[:half], before[:half]) for after, before in zip(second, first, strict=True)]
        if not all(torch.equal(after, before) for after, before in pairs if not before.is_floating_point()):
            return False
        changed, unchanged = zip(*pairs, strict=True)
        return difference(changed, unchanged) is None


class CudaGraph:
    """``Captured`` by CUDA.

    Args:
        function: what is computed.
        tensors: an example of its inputs, on a CUDA device; copied.
        pool: the memory pool that the graphs of a model share.

    Raises:
        RuntimeError: ``function`` does what cannot be captured, or would keep the value of a number on the CPU.
    """

    def __init__(self, function: Function, tensors: Sequence[Tensor], pool: object) -> None:
        device = tensors[0].device
        elsewhere = next((tensor.device for tensor in tensors if not tensor.is_cuda), None)
        if elsewhere is not None:  # read when a kernel is launched, and the graph launches with what was read then
            raise RuntimeError(f"an input is on the {elsewhere}, and a graph would keep its value for all calls")
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
            self.inputs: Sequence[Tensor] = [_own_copy(tensor) for tensor in tensors]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(2):  # what compiles, allocates or chooses an algorithm at first must not be captured
                    function(self.inputs)
            torch.cuda.current_stream(device).wait_stream(stream)
            before = torch.cuda.memory_reserved(device)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may go on launching: only this one must keep to what can be captured.
            with (
                torch.cuda.stream(torch.cuda.current_stream(device)),  # current again should the capture fail
                torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"),  # type: ignore[arg-type]
            ):
                self.outputs: Sequence[Tensor] = function(self.inputs)
            held = torch.cuda.memory_reserved(device) - before
        _logger.info("captured a CUDA graph for inputs %s: %.0f MB", [tuple(t.shape) for t in tensors], held / 1e6)

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._graph.replay()


def _own_copy(tensor: Tensor) -> Tensor:
    from unit_fast.runtime.kernel_graph import as_channels_last

    return as_channels_last(tensor).clone(memory_format=torch.preserve_format)


class StreamFence:
    """``Fence`` by an event on the current stream of ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: torch.cuda.Event | None = None

    def enter(self) -> None:
        """Let the current stream wait for the replay before."""
        if self._last is not None:
            torch.cuda.current_stream(self._device).wait_event(self._last)

    def leave(self) -> None:
        """Mark the end of this one."""
        if self._last is None:
            self._last = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._last.record(torch.cuda.current_stream(self._device))


def cuda_graphs(function: Function, batched_inputs: Sequence[int], device: torch.device) -> GraphCache:
    """The cache of graphs for a function on ``device``."""
    pool = torch.cuda.graph_pool_handle()
    return GraphCache(
        function,
        batched_inputs,
        capture=lambda captured, tensors: CudaGraph(captured, tensors, pool),
        fence=StreamFence(device),
        capturing=torch.cuda.is_current_stream_capturing,
    )
