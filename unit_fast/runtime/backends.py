"""The backends: what each must be able to do, which of them run here, and why the others do not."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from unit_fast.errors import BackendUnavailableError, UnitFastWarning
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.eager import Eager
from unit_fast.runtime.explain import SiteNote
from unit_fast.runtime.onnx_session import OnnxSession
from unit_fast.runtime.program import Program

Backend = Literal["auto", "triton", "onnxruntime", "compile", "eager"]


class FallbackWarning(UnitFastWarning):
    """``backend="auto"`` could not take the faster backend."""


class Runner(Protocol):
    """Runs one :class:`Program`; made when it is first needed, and made anew when the weights have changed.

    Calls come with floating tensors already in the program's dtype, from several threads at once.
    """

    def __init__(self, program: Program) -> None: ...

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run on ``device`` in ``dtype``, and what to do; None when it can."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""

    def monitor(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """What the model returns, and (N, sites): how many activations lie above their bound."""

    def warmup(self, batch_sizes: Sequence[int], monitor: bool = False) -> None:
        """Do now, for these batch sizes, what the first call (and that of ``monitor``) would have to do."""

    def explain(self) -> Sequence[SiteNote]:
        """What runs each site, and why."""


RUNNERS: dict[str, type[Runner]] = {
    "onnxruntime": OnnxSession,
    "compile": Compiled,
    "eager": Eager,
}

# What "auto" takes: the first that can run. That it is not the first of all is said once.
_PREFERENCE = {
    "cpu": ("compile", "eager"),
    "cuda": ("compile", "eager"),
}


def unavailable(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why ``backend`` cannot run on ``device`` in ``dtype``; None when it can."""
    if backend not in RUNNERS:
        return f"the {backend} backend is not part of this version; use one of {', '.join(RUNNERS)}"
    return RUNNERS[backend].unavailable(device, dtype)


def choose(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
    """The backend to run: the one that is named, or for "auto" the fastest that can run on ``device``.

    Raises:
        BackendUnavailableError: the backend is unknown, or was named and cannot run here.
    """
    if backend not in get_args(Backend):
        raise BackendUnavailableError(f"backend is {backend!r}; expected one of {', '.join(get_args(Backend))}")
    if backend != "auto":
        reason = unavailable(backend, device, dtype)
        if reason is not None:
            raise BackendUnavailableError(f"backend {backend!r} cannot run on {device}: {reason}")
        return backend  # type: ignore[return-value]
    reasons: list[str] = []
    for candidate in _PREFERENCE.get(device.type, ("compile", "eager")):
        reason = unavailable(candidate, device, dtype)
        if reason is None:
            if reasons:
                warnings.warn(f"running by {candidate}: {'; '.join(reasons)}", FallbackWarning, stacklevel=3)
            return candidate  # type: ignore[return-value]
        reasons.append(reason)
    raise BackendUnavailableError(f"no backend can run on {device}: {'; '.join(reasons)}")
