"""The "compile" backend: torch.compile with frozen weights."""

import logging
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.runtime.explain import SiteNote
from unit_fast.runtime.program import Program

_logger = logging.getLogger(__name__)


class Compiled:
    """Runs the graph through Inductor, which fuses each clamp into the loop around it; for inference only."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._output: Callable[..., Any] | None = None
        self._with_counts: Callable[..., Any] | None = None

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:  # noqa: ARG003 - the protocol's
        """Why torch.compile cannot run on ``device``."""
        if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++") or shutil.which("cl")):
            return "torch.compile needs a C++ compiler (g++ or clang++) on the CPU and none is on the PATH; install one"
        if device.type == "cuda" and not torch.utils._triton.has_triton():
            return "torch.compile needs Triton on CUDA; install the triton that belongs to this torch"
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        if self._output is None:
            self._output = _compiled(self._program.module)
        with torch.no_grad():
            return self._output(*args, **kwargs)

    def monitor(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The model's output, and the number of activations above their bound, (N, sites)."""
        if self._with_counts is None:
            self._with_counts = _compiled(self._program.counting)
        with torch.no_grad():
            output, counts = self._with_counts(*args, **kwargs)
        return output, counts

    def warmup(self, batch_sizes: Sequence[int]) -> None:
        """Compile for these batch sizes."""
        for size in batch_sizes:
            call = self._program.example.of_size(size)
            for _ in range(2):
                self(*call.args, **call.kwargs)

    def explain(self) -> list[SiteNote]:
        """Inductor fuses what is pointwise."""
        what = "the operators around it that are pointwise"
        return [SiteNote(site, what, "torch.compile", "backend compile") for site in self._program.bounds]


def _compiled(module: fx.GraphModule) -> Callable[..., Any]:
    _logger.info("compiling the sanitised graph by torch.compile")
    # Freezing packs the weights once, for inference only.
    return torch.compile(module, dynamic=False, options={"freezing": True})
