"""The runner of ``dtype="int8"``: the graph quantised once, and run by ONNX Runtime or OpenVINO."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from unit_fast.errors import BackendUnavailableError, FallbackWarning
from unit_fast.export.session import OnnxRuntimeModel
from unit_fast.runtime.automatic import Automatic
from unit_fast.runtime.exported import exported
from unit_fast.runtime.program import Program
from unit_fast.runtime.runner import Inspector
from unit_fast.runtime.sessions import ExportedSession, OnnxSession, OpenVinoSession

# The first also fits: it runs the float network on the samples, and says what the integers mean.
SESSIONS: dict[str, type[ExportedSession]] = {"onnxruntime": OnnxSession, "openvino": OpenVinoSession}


def quantised(program: Program, backend: str, calibration_data: Iterable[Any]) -> Inspector:
    """Runs ``program`` in int8, for its weights as they are; counting stays in float32.

    Integers do not agree with the reference to its last digits. The export compares predictions instead, and what a
    session computes meets, at every new batch size, what ONNX Runtime makes of the file in float.

    Args:
        program: what to run, on the CPU and in float32.
        backend: one of ``SESSIONS``; "auto" is the one that warm-up measures to be faster.
        calibration_data: batches (x, y) or x of clean samples.

    Raises:
        BackendUnavailableError: something is not installed, or the graph cannot be exported.
        DataError: the samples are unusable.
        ParityError: int8 changes too many predictions.
    """
    cpu = torch.device("cpu")
    reason = OnnxSession.unavailable(cpu, torch.float32)
    if reason is not None:
        raise BackendUnavailableError(f'dtype="int8" is fitted in ONNX Runtime: {reason}')
    sessions: dict[str, ExportedSession] = {}
    with exported(program, "onnxruntime", calibration_data) as file:
        held_to = dataclasses.replace(file, meaning=OnnxRuntimeModel(file.path, threads=1, optimize=False))
        for name, session in SESSIONS.items() if backend == "auto" else [(backend, SESSIONS[backend])]:
            if session.unavailable(cpu, torch.float32) is not None:
                continue
            try:
                sessions[name] = session(program, held_to)
            except BackendUnavailableError as error:
                if not sessions:
                    raise
                warnings.warn(f"running without the {name} backend: {error}", FallbackWarning, stacklevel=3)
    if len(sessions) == 1:
        return next(iter(sessions.values()))
    return Automatic(program, {name: _given(session) for name, session in sessions.items()})


def _given(session: ExportedSession) -> Callable[[Program], Inspector]:
    return lambda _: session
