"""The constants of what Inductor compiled for one model: held once for all its graphs, and let go of with it.

Inductor keeps every module that it generates until the process ends, and each holds the weights that were frozen into
it, packed: 45 MiB a graph of ResNet-18, for good, also when the model they were compiled for is long gone. And of the
graphs for the output, for counting and for other batch sizes each has copies of the same.
"""

import ctypes
import hashlib
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import convert_frame
from torch._inductor.codecache import PyCodeCache

_mkldnn: Any = torch.ops.mkldnn
# Whoever compiles by torch.compile holds this, so that no module of theirs appears among ours.
_compiling: AbstractContextManager[Any] = getattr(convert_frame, "compile_lock", None) or threading.RLock()


class Constants:
    """Shares equal constants among the modules compiled within ``sharing``, and forgets the modules when it ends."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], Tensor] = {}
        self._modules: list[ModuleType] = []
        weakref.finalize(self, _forget, self._modules).atexit = False

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Around a compilation; one at a time."""
        with _compiling:
            before = list(PyCodeCache.modules)  # held, so that no new one gets the id of one that has gone meanwhile
            known = set(map(id, before))
            try:
                yield
            finally:
                for module in [module for module in list(PyCodeCache.modules) if id(module) not in known]:
                    self._take(module)

    def _take(self, module: ModuleType) -> None:
        frozen = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        if not frozen:
            return  # Inductor may give the same one to others
        self._modules.append(module)
        for name, tensor in frozen.items():
            content = _content(tensor)
            if content is not None:
                setattr(module, name, self._kept.setdefault(content, tensor))


def _content(tensor: Tensor) -> tuple[object, ...] | None:
    """What makes two tensors the same: shape, dtype, layout in memory and bytes. None of those that it cannot tell."""
    if tensor.device.type != "cpu":
        return None
    kind = tensor.layout, tensor.dtype, tuple(tensor.shape)
    if tensor.is_mkldnn:  # its layout is one of oneDNN's, by blocks
        layout = _mkldnn._get_mkldnn_serialized_md(tensor)
        return *kind, bytes(layout.numpy()), _digest(_mkldnn.data_ptr(tensor), _mkldnn._nbytes(tensor))
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized:
        return None
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    length = span * tensor.element_size() if tensor.numel() else 0
    return *kind, tensor.stride(), _digest(tensor.data_ptr(), length)


def _digest(address: int, length: int) -> bytes:
    return hashlib.sha256((ctypes.c_char * length).from_address(address) if length else b"").digest()


def _forget(modules: list[ModuleType]) -> None:
    for module in modules:
        if module in PyCodeCache.modules:
            PyCodeCache.modules.remove(module)
        if sys.modules.get(module.__name__) is module:
            del sys.modules[module.__name__]
    modules.clear()
