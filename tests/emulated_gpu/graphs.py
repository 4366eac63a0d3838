"""CUDA graphs: what is captured is recorded, operator by operator, and run again into the same memory.

What a real capture forbids (waiting for the device, copies between it and the host) raises here too. A pool is a number
only: no graph's memory is used again by another.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_WAIT = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
_COPY = {"copy_", "_to_copy"}
_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_of_thread = threading.local()


def capturing() -> CUDAGraph | None:
    """The graph that this thread captures."""
    return getattr(_of_thread, "graph", None)


def refuse_while_capturing(what: str) -> None:
    """What waits for the device, or for the host, cannot be part of a graph."""
    if capturing() is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")


class CUDAGraph:
    """In place of ``torch.cuda.CUDAGraph``."""

    def __init__(self, keep_graph: bool = False) -> None:
        del keep_graph
        self.reset()

    def reset(self) -> None:
        self._steps: list[Callable[[], object]] = []
        self._own: dict[int, Tensor] = {}  # what was made within, by address
        self._before: dict[int, tuple[torch.UntypedStorage, bytes]] = {}  # what others' memory held
        self._pool: object = None
        self._ended = False

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        del capture_error_mode
        if capturing() is not None:
            raise RuntimeError("a graph is captured within the capture of another")
        from tests.emulated_gpu.torch_cuda import DEFAULT_STREAM, current_stream

        if current_stream() is DEFAULT_STREAM:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        self._pool = pool
        self._recorder = _Recorder(self)
        _of_thread.graph = self
        self._recorder.__enter__()

    def capture_end(self) -> None:
        self._recorder.__exit__(None, None, None)
        _of_thread.graph = None
        # On a card nothing has run yet: the memory of others holds what it held, the graph's own nothing of use.
        for storage, content in self._before.values():
            ctypes.memmove(storage.data_ptr(), content, len(content))
        for address, tensor in self._own.items():
            ctypes.memset(address, 0xFF, tensor.untyped_storage().nbytes())
        self._before.clear()
        self._ended = True

    def replay(self) -> None:
        if not self._ended:
            raise RuntimeError("the graph was not captured")
        refuse_while_capturing("replay")
        with torch.no_grad(), torch.inference_mode(False), _disable_current_modes():
            for step in self._steps:
                step()

    def pool(self) -> object:
        return self._pool

    def record(self, step: Callable[[], object]) -> None:
        """Run ``step`` in every replay."""
        self._steps.append(step)

    def written(self, tensors: Iterable[Tensor]) -> None:
        """Keep what is about to be written over, unless it is the graph's own."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if storage.nbytes() and address not in self._own and address not in self._before:
                self._before[address] = storage, ctypes.string_at(address, storage.nbytes())

    def made(self, tensors: Iterable[Tensor]) -> None:
        """Keep what was made within: replays write to it."""
        self._own.update((_address(tensor), tensor) for tensor in tensors if tensor.untyped_storage().nbytes())


class graph:
    """In place of ``torch.cuda.graph``."""

    def __init__(
        self, cuda_graph: CUDAGraph, pool: object = None, stream: Any = None, capture_error_mode: str = "global"
    ) -> None:
        from tests.emulated_gpu.torch_cuda import Stream, StreamContext

        self._graph, self._pool, self._mode = cuda_graph, pool, capture_error_mode
        self._on_stream = StreamContext(stream or Stream())

    def __enter__(self) -> None:
        refuse_while_capturing("torch.cuda.graph synchronizes")
        self._on_stream.__enter__()
        self._graph.capture_begin(self._pool, self._mode)

    def __exit__(self, *exception: object) -> None:
        self._graph.capture_end()
        self._on_stream.__exit__(*exception)


class _Recorder(TorchDispatchMode):
    """Runs each operator, and keeps how to run it again."""

    def __init__(self, graph: CUDAGraph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator.namespace == "unit_fast":  # what it launches is recorded
            with self:
                return operator._op_dk(torch._C.DispatchKey.CUDA, *args, **kwargs)
        given = _tensors((args, kwargs))
        on_device = any(tensor.is_cuda for tensor in given)
        _refuse(operator, given, on_device, kwargs.get("device"))
        changed = _written(operator, args, kwargs)
        self._graph.written(tensor for tensor in changed if tensor.is_cuda)
        result = operator(*args, **kwargs)
        results = _tensors(result)
        if not on_device and not any(tensor.is_cuda for tensor in results):
            return result
        known = {_address(tensor) for tensor in given}
        new = {i: tensor for i, tensor in enumerate(results) if _address(tensor) not in known}
        self._graph.made(new.values())
        is_empty = operator.overloadpacket.__name__.startswith(("empty", "new_empty"))
        if not is_empty and (new or changed):  # else it is a view, or computes nothing

            def again() -> None:
                results = _tensors(operator(*args, **kwargs))
                for i, tensor in new.items():
                    tensor.detach().copy_(results[i])

            self._graph.record(again)
        return result


def _refuse(operator: Any, given: list[Tensor], on_device: bool, device: Any) -> None:
    name = operator.overloadpacket.__name__
    if name in _WAIT and on_device:
        refuse_while_capturing(str(operator))
    if name in _COPY:
        to_device = on_device if device is None else torch.device(device).type == "cuda"
        if any(tensor.is_cuda != to_device for tensor in given):
            refuse_while_capturing(f"{operator} between host and device")
    if name in _INDEX and on_device:
        if any(not tensor.is_cuda for tensor in given):
            refuse_while_capturing(f"{operator} with indices on the CPU")
        if any(tensor.dtype in (torch.bool, torch.uint8) for tensor in given[1:]):
            refuse_while_capturing(f"{operator} with masks")


def _written(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that ``operator`` writes to."""
    arguments = operator._schema.arguments
    given = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
    writes = (a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
    return _tensors([given.get(name) for name in writes])


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
