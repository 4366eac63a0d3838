"""The backends by name: which of them run here, and why the others do not."""

import os
import warnings
from typing import Literal, get_args

import torch

from unit_fast.errors import BackendUnavailableError, FallbackWarning
from unit_fast.runtime.automatic import Automatic, able
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.eager import Eager
from unit_fast.runtime.fused import Fused
from unit_fast.runtime.runner import Runner
from unit_fast.runtime.sessions import OnnxSession, OpenVinoSession

Backend = Literal["auto", "triton", "onnxruntime", "openvino", "compile", "eager"]

RUNNERS: dict[str, type[Runner]] = {
    "auto": Automatic,
    "triton": Fused,
    "onnxruntime": OnnxSession,
    "openvino": OpenVinoSession,
    "compile": Compiled,
    "eager": Eager,
}

# What backend="auto" takes: the first that can run, which is the class that measures where there are two to choose
# from. It is said once when it had to be one of the last.
_PREFERENCE = {
    "cpu": ("auto", "compile", "openvino", "onnxruntime", "eager"),
    "cuda": ("auto", "triton", "compile", "eager"),
}
_NO_LOSS = {"cpu": ("auto", "compile"), "cuda": ("auto", "triton")}

OVERRIDE = "UNIT_FAST_BACKEND"
"""The environment variable that names what "auto" takes."""


def unavailable(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why ``backend`` cannot run on ``device`` in ``dtype``; None when it can."""
    if backend not in RUNNERS:
        return f"the {backend} backend is not part of this version; use one of {', '.join(RUNNERS)}"
    return RUNNERS[backend].unavailable(device, dtype)


def choose(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
    """The backend to run: the one that is named, or for "auto" the fastest that can run on ``device``.

    ``UNIT_FAST_BACKEND`` in the environment names another for "auto".

    Raises:
        BackendUnavailableError: the backend is unknown, or was named and cannot run here.
    """
    named = (os.environ.get(OVERRIDE) or "auto") if backend == "auto" else backend
    if named not in get_args(Backend):
        place = "backend" if backend != "auto" else f"{OVERRIDE} in the environment"
        raise BackendUnavailableError(f"{place} is {named!r}; expected one of {', '.join(get_args(Backend))}")
    if named == "auto":
        chosen, why = auto_choice(device, dtype)
        if chosen not in _NO_LOSS.get(device.type, ("compile",)):
            warnings.warn(f"running by {chosen}: {why}", FallbackWarning, stacklevel=3)
        return chosen
    reason = unavailable(named, device, dtype)
    if reason is not None:
        raise BackendUnavailableError(f"backend {named!r} cannot run on {device}: {reason}")
    return named  # type: ignore[return-value]


def auto_choice(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Backend, str]:
    """What "auto" takes on ``device``, and why: what those before it lack."""
    reasons: list[str] = []
    for candidate in _PREFERENCE.get(device.type, ("compile", "eager")):
        reason = unavailable(candidate, device, dtype)
        if reason is None:
            if candidate == "auto":
                return "auto", f"the fastest of {', '.join(able(device, dtype))} as warmup() measures them"
            return candidate, "; ".join(reasons) or "the fastest there is"  # type: ignore[return-value]
        if not any(reason in said for said in reasons):  # "auto" says what its candidates lack
            reasons.append(reason)
    raise AssertionError("the eager backend runs everywhere")
