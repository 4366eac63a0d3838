"""Compiling the kernels that a warm-up is about to time, on all cores, before it launches them.

Triton compiles a kernel at its first launch, one after the other, and its compiler holds Python's lock, so threads are
no help. Processes are: each compiles its share without a GPU (``kernels.compiling``) into Triton's cache on disk,
where this process finds it. Whatever goes wrong there costs time only: what is not in the cache is compiled when it is
launched, and what cannot be compiled fails then and is dropped with its reason.

Python's own pools of processes would import the caller's script again, hence the command.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from unit_fast.kernels.dispatch.candidates import candidates_for
from unit_fast.kernels.dispatch.environment import Environment, interpreting
from unit_fast.kernels.dispatch.problem import Problem

_logger = logging.getLogger(__name__)

VARIABLE = "UNIT_FAST_COMPILE_PROCESSES"
"""Environment variable: how many processes compile at a warm-up; 1 leaves it to this one. Else a core each, up to 8."""
MOST_PROCESSES = 8  # of 0.4 GB each
LEAST_LAUNCHES = 6
"""A process: to start one takes as long as a few compilations."""
PATIENCE = 300.0
"""Seconds after which processes that still compile are ended."""
DONE = "all compiled"
"""What a process says last; that it ended in peace is not enough, for it may be another program."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a container on Linux: microseconds of processors in a period, and the period."""

Launch = tuple[Problem, str]
"""A problem, and the name of a candidate that is to run it."""


def processes_from_environment() -> int:
    """How many processes may compile.

    Raises:
        ValueError: UNIT_FAST_COMPILE_PROCESSES is no whole number above 0.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        return min(MOST_PROCESSES, _cores())
    if not value.isdecimal() or int(value) == 0:
        raise ValueError(f"unit_fast.kernels: {VARIABLE} is {value!r}; expected a whole number above 0")
    return int(value)


def compile_ahead(launches: Sequence[Launch], environment: Environment, processes: int) -> None:
    """Compile into Triton's cache what ``launches`` need; only where it is worth processes of their own.

    Args:
        launches: of Triton candidates, by the names that ``candidates_for`` gives them.
        environment: of the GPU.
        processes: at most.
    """
    count = min(processes, len(launches) // LEAST_LAUNCHES)
    if count < 2 or interpreting() or not _is_python(sys.executable):
        return
    for failure in compile_in_processes(launches, environment, count):
        _logger.warning("compiling kernels ahead of their first use failed, which costs time only: %s", failure)


def compile_in_processes(launches: Sequence[Launch], environment: Environment, count: int) -> list[str]:
    """The same in ``count`` processes; returns what went wrong with them, a line each."""
    started = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            running = [_start(share, environment, stack) for share in shares(launches, count)]
            failures = [said for process, output in running if (said := _failure(process, output, started))]
    except OSError as error:  # no memory for processes, no folder for files
        failures = [str(error)]
    seconds = time.monotonic() - started
    _logger.info("compiled for %d launches in %d processes: %.1f s", len(launches), count, seconds)
    return failures


def shares(launches: Sequence[Launch], count: int) -> list[list[Launch]]:
    """``launches`` in ``count`` parts, alike in length, those of one candidate together: they share compilations."""
    groups: dict[tuple[str, str], list[Launch]] = {}
    for problem, name in launches:
        groups.setdefault((problem.operator, name), []).append((problem, name))
    parts: list[list[Launch]] = [[] for _ in range(count)]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(parts, key=len).extend(group)
    return [part for part in parts if part]


def _start(
    share: Sequence[Launch], environment: Environment, stack: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], Path]:
    """A process that compiles ``share``, and the file that it writes to; both end with ``stack``."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unit_fast_compile_")))
    (folder / "task").write_bytes(pickle.dumps((environment, share)))
    # Not by PYTHONPATH: what lies there would go before the standard library, and a sitecustomize would run.
    code = f"import sys; sys.path[:] = {_paths()}; from {__name__} import compile_from; compile_from({str(folder)!r})"
    variables = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    output = folder / "output"
    with output.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,  # by whose end the process sees that of this one
            stdout=said,
            stderr=said,
        )
    stack.callback(_end, process)  # before its folder goes
    return process, output


def _paths() -> list[str]:
    """Where the process looks for modules: where this one does, but for the standard library, which comes first."""
    library, platform = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
    own = [library, platform, os.path.join(platform, "lib-dynload")]  # noqa: PTH118
    return [*own, *(path or os.getcwd() for path in sys.path)]  # noqa: PTH109


def _is_python(executable: str | None) -> bool:
    """Whether it can be asked to run some Python; a program that holds an interpreter would only start anew."""
    return bool(executable) and Path(executable or "").name.lower().startswith(("python", "pypy"))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _failure(process: subprocess.Popen[bytes], output: Path, started: float) -> str | None:
    try:
        code = process.wait(max(0.0, started + PATIENCE - time.monotonic()))
    except subprocess.TimeoutExpired:
        return f"it took longer than {PATIENCE:.0f} s and was ended"
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if lines[-1:] == [DONE]:
        return None
    return lines[-1] if lines and code > 0 else f"it ended with {code}"


def compile_from(folder: str) -> None:
    """Compile what the process that wrote ``folder``/task wants, in this one, which must not be one that uses a GPU."""
    from unit_fast.kernels.compiling import compiling_for

    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    environment, share = pickle.loads((Path(folder) / "task").read_bytes())
    torch.set_num_threads(1)
    with compiling_for(environment.capability, environment.programs), torch.no_grad():
        for problem, name in share:
            torch.backends.cuda.matmul.fp32_precision = "tf32" if problem.precision == "tf32" else "ieee"
            torch.backends.cudnn.conv.fp32_precision = "tf32" if problem.precision == "tf32" else "ieee"  # type: ignore[attr-defined]
            with contextlib.suppress(Exception):  # it fails where it is launched, too, and is dropped there
                (candidate,) = (one for one in candidates_for(problem, environment) if one.name == name)
                operands = [None if spec is None else spec.empty() for spec in problem.tensors]
                candidate.call(*operands, *problem.options)
    print(DONE, flush=True)


def _end_with_parent(folder: str) -> None:
    os.read(0, 1)  # until the parent is no more, however it ended; not by sys.stdin, whose lock Python takes at its end
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _cores() -> int:
    """Those that this process may use, of a container with a quota no more than that is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file; "max"
        quota, period = (int(number) for number in CPU_QUOTA.read_text(encoding="ascii").split())
        cores = min(cores, max(1, quota // period))
    return cores
