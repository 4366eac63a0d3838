"""How the sanitised graph is run: the backends, which of them can run here, and why the others cannot."""

import logging
import shutil
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import fx

from unit_fast.errors import BackendUnavailableError, UnitFastWarning

Backend = Literal["auto", "triton", "onnxruntime", "compile", "eager"]

_logger = logging.getLogger(__name__)


class FallbackWarning(UnitFastWarning):
    """``backend="auto"`` could not take the faster backend."""


def unavailable(backend: Backend, device: torch.device) -> str | None:
    """Why ``backend`` cannot run on ``device``; None when it can."""
    if backend in ("triton", "onnxruntime"):
        return f"the {backend} backend is not part of this version; use 'compile' or 'eager'"
    if backend == "compile":
        if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++") or shutil.which("cl")):
            return "torch.compile needs a C++ compiler (g++ or clang++) on the CPU and none is on the PATH; install one"
        if device.type == "cuda" and not torch.utils._triton.has_triton():
            return "torch.compile needs Triton on CUDA; install the triton that belongs to this torch"
    return None


def choose(backend: str, device: torch.device) -> Backend:
    """The backend to run: the one that is named, or for "auto" the fastest that can run on ``device``.

    Raises:
        BackendUnavailableError: the backend is unknown, or was named and cannot run here.
    """
    if backend not in get_args(Backend):
        raise BackendUnavailableError(f"backend is {backend!r}; expected one of {', '.join(get_args(Backend))}")
    if backend == "auto":
        reason = unavailable("compile", device)
        if reason is None:
            return "compile"
        warnings.warn(f"running eagerly: {reason}", FallbackWarning, stacklevel=3)
        return "eager"
    reason = unavailable(backend, device)  # type: ignore[arg-type]
    if reason is not None:
        raise BackendUnavailableError(f"backend {backend!r} cannot run on {device}: {reason}")
    return backend  # type: ignore[return-value]


def runner(backend: Backend, module: fx.GraphModule) -> Callable[..., Any]:
    """A callable that runs ``module`` by ``backend``, which :func:`choose` has returned."""
    if backend == "eager":
        return module
    _logger.info("compiling the sanitised graph by torch.compile")
    # Freezing packs the weights once, for inference only.
    compiled = torch.compile(module, dynamic=False, options={"freezing": True})

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return compiled(*args, **kwargs)

    return run
