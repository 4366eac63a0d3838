"""``torch.cuda`` for the emulated device: streams, events, and what it tells of itself.

Everything runs at once and in order, so that streams and events have nothing to wait for.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from tests.emulated_gpu.graphs import CUDAGraph, capturing, graph, refuse_while_capturing

# A Hopper, for the kernels' newest paths. Its name is no real GPU's: no table of choices holds for it.
PROPERTIES = SimpleNamespace(
    name="Emulated GPU",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=141 * 2**30,
    L2_cache_size=50 * 2**20,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    warp_size=32,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
)
CAPABILITY = (PROPERTIES.major, PROPERTIES.minor)
_of_thread = threading.local()
_numbers = itertools.count(1)


class Stream:
    """In place of ``torch.cuda.Stream``; equal to no other."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        del device, priority
        self.device = torch.device("cuda", 0)
        self.stream_id = self.cuda_stream = next(_numbers)

    def wait_stream(self, stream: Stream) -> None:
        assert isinstance(stream, Stream)

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, Event)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        refuse_while_capturing("Stream.synchronize")


DEFAULT_STREAM = Stream()


class Event:
    """In place of ``torch.cuda.Event``: the host's clock, since nothing runs beside the host."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        del blocking, interprocess
        self._timing = enable_timing
        self._time = 0.0

    def record(self, stream: Stream | None = None) -> None:
        del stream
        self._time = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        refuse_while_capturing("Event.synchronize")

    def elapsed_time(self, end: Event) -> float:
        assert self._timing
        assert end._timing
        return (end._time - self._time) * 1e3


class StreamContext:
    """In place of ``torch.cuda.stream``."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        self._before = current_stream()
        _of_thread.stream = self._stream or self._before

    def __exit__(self, *exception: object) -> None:
        _of_thread.stream = self._before


def current_stream(device: object = None) -> Stream:
    """This thread's."""
    del device
    return getattr(_of_thread, "stream", DEFAULT_STREAM)


def install(extension: ModuleType) -> None:
    """Let ``torch.cuda`` be what this module has."""
    import torch._dynamo.device_interface as interfaces
    import torch._dynamo.trace_rules as rules

    rules.get_torch_obj_rule_map()  # resolves torch.cuda's functions once, and refuses those of another module
    replaced = _told() | _memory(extension) | _streams() | _random(extension)
    modules = (torch.cuda, torch.cuda.graphs, torch.cuda.random, torch.cuda.streams, torch.cuda.memory)
    for name, value in replaced.items():
        for module in modules:
            if module is torch.cuda or hasattr(module, name):
                setattr(module, name, value)
        if hasattr(interfaces.CudaInterface, name):
            of_class = value if isinstance(value, type) else staticmethod(value)
            setattr(interfaces.CudaInterface, name, of_class)
    interfaces.CudaInterface.Worker.get_device_properties = staticmethod(_properties)
    torch.cuda.default_generators = (extension.default_generator(),)
    torch.version.cuda = "13.0"
    torch._C._cuda_getDriverVersion = lambda: 13000
    # torch's own asks for a storage of CUDA by its size, which a build without CUDA does not have.
    torch.UntypedStorage.clone = _clone


def _properties(device: object = None) -> SimpleNamespace:
    del device
    return PROPERTIES


def _nothing(*_args: object, **_options: object) -> None:
    """For what has nothing to do here."""


def _told() -> dict[str, Any]:
    told: dict[str, Any] = dict.fromkeys(("init", "_lazy_init", "set_device", "empty_cache", "ipc_collect"), _nothing)
    return told | {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "_exchange_device": lambda _device: 0,
        "_maybe_exchange_device": lambda _device: 0,
        "device": lambda _device: contextlib.nullcontext(),
        "get_device_properties": _properties,
        "_get_device_properties": _properties,
        "get_device_name": lambda _device=None: PROPERTIES.name,
        "get_device_capability": lambda _device=None: CAPABILITY,
        "get_arch_list": lambda: ["sm_90"],
        "is_bf16_supported": lambda *_args, **_options: True,
    }


def _memory(extension: ModuleType) -> dict[str, Any]:
    names = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
    return {
        **dict.fromkeys(names, lambda _device=None: extension.allocated()),
        "reset_peak_memory_stats": _nothing,
        "mem_get_info": lambda _device=None: (PROPERTIES.total_memory, PROPERTIES.total_memory),
    }


def _streams() -> dict[str, Any]:
    pools = itertools.count(1)
    return {
        "Stream": Stream,
        "StreamContext": StreamContext,
        "stream": StreamContext,
        "current_stream": current_stream,
        "default_stream": lambda _device=None: DEFAULT_STREAM,
        "Event": Event,
        "synchronize": lambda _device=None: refuse_while_capturing("torch.cuda.synchronize"),
        "CUDAGraph": CUDAGraph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, next(pools)),
        "is_current_stream_capturing": lambda: capturing() is not None,
    }


def _random(extension: ModuleType) -> dict[str, Any]:
    generator = extension.default_generator()
    return {
        "manual_seed": generator.manual_seed,
        "manual_seed_all": generator.manual_seed,
        "seed_all": generator.seed,
        "get_rng_state": lambda _device=None: generator.get_state(),
        "set_rng_state": lambda state, _device=None: generator.set_state(state),
    }


def _clone(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    return torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device).untyped_storage().copy_(storage)
