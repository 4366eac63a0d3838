"""SanitizedModel: an nn.Module, called as the model it protects."""

import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unit_fast.bounds import Bounds
from unit_fast.errors import UnitFastError
from unit_fast.runtime.backends import RUNNERS, Backend, Runner
from unit_fast.runtime.calls import Call
from unit_fast.runtime.explain import as_text
from unit_fast.runtime.program import Program


class SanitizedModel(nn.Module):
    """What :func:`unit_fast.sanitize` returns.

    Attributes:
        graph_module: the sanitised graph, the reference that every backend is compared with.
        bounds: the bounds in it, as they were given.
        backend: what runs it: "triton", "onnxruntime", "compile" or "eager".
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        bounds: Bounds,
        backend: Backend,
        dtype: torch.dtype | None,
        example: Call,
    ) -> None:
        super().__init__()
        self.graph_module = graph_module
        self.bounds = bounds
        self.backend = backend
        self._dtype = dtype
        self._example = example
        self._runner: Runner | None = None
        self._lock = threading.Lock()
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the model is; floating-point inputs are cast to the dtype chosen in :func:`sanitize`."""
        if self._dtype is not None:
            args, kwargs = pytree.tree_map(self._cast, (args, kwargs))
        return self._ready()(*args, **kwargs)

    def warmup(self, batch_sizes: Iterable[int] = (1,)) -> "SanitizedModel":
        """Compile for these batch sizes now, so that no request pays for it; returns self.

        Args:
            batch_sizes: positive.

        Raises:
            UnitFastError: they are no positive whole numbers.
        """
        self._ready().warmup(_checked_sizes(batch_sizes))
        return self

    def explain(self) -> str:
        """What runs each site, and why, as a table."""
        title = f"{len(self.bounds)} sites, bounds per {self.bounds.granularity}, backend {self.backend}"
        return as_text(title, self._ready().explain())

    def extra_repr(self) -> str:
        """Shown by ``print``: backend, granularity and number of bounds."""
        return f"backend={self.backend}, {len(self.bounds)} sites, bounds per {self.bounds.granularity}"

    def __getstate__(self) -> dict[str, Any]:
        # A copy compiles for its own weights.
        return {**self.__dict__, "_runner": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def _ready(self) -> Runner:
        if self._runner is None:
            with self._lock:
                if self._runner is None:
                    self._runner = RUNNERS[self.backend](self._program())
        return self._runner

    def _program(self) -> Program:
        tensors = [*self.graph_module.parameters(), *self.graph_module.buffers()]
        example = self._example.to(tensors[0].device)
        args, kwargs = pytree.tree_map(self._cast, (example.args, example.kwargs))
        return Program(self.graph_module, self.bounds, Call(args, kwargs, example.batch))

    def _cast(self, leaf: Any) -> Any:
        floating = self._dtype is not None and isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(self._dtype) if floating else leaf


def _checked_sizes(batch_sizes: Any) -> list[int]:
    advice = "expected positive whole numbers, such as warmup([1, 32])"
    if not isinstance(batch_sizes, Iterable) or isinstance(batch_sizes, str | bytes):
        raise UnitFastError(f"warmup was given {batch_sizes!r}; {advice}")
    sizes = list(batch_sizes)
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UnitFastError(f"batch size {size!r} cannot be warmed up; {advice}")
    return sizes
