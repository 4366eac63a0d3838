"""Tasks in processes of their own, so that neither a kernel that faults nor one that hangs ends a sweep.

An illegal memory access makes a process's CUDA context useless. The process that met one reports it and is replaced;
one that dies or takes too long is replaced as well, and its task counts as failed.

Most of a task is preparing: building, compiling, comparing. That goes on side by side. What takes times does so within
``alone()``, where all other tasks of the pool wait. Whoever is ready to take times goes before those who have taken
theirs and would prepare what comes next: these go on together, not one after the other.
"""

import contextlib
import fcntl
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

START_SECONDS = 60.0
"""How much longer the first task of a process may take: imports, and the start of CUDA."""
STOP_SECONDS = 10.0
"""How long a killed process is waited for: one that hangs in the driver may never end."""

Line = Callable[[Any], Hashable]

_SPAWN = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
_turns: "_Turns | None" = None
"""In a process of the pool: by what its tasks take turns."""


class Outcome(NamedTuple):
    """What came of a task: its result, or why there is none."""

    task: Any
    result: Any
    failure: str | None


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection
    line: Hashable


def run_tasks(
    function: str,
    tasks: Iterable[Any],
    *,
    workers: int,
    task_seconds: float,
    deadline: float,
    line_of: Line = lambda _task: None,
) -> Generator[Outcome, None, None]:
    """The outcomes of ``function`` for each task, as they come.

    Args:
        function: ``"module:name"`` of a function of one argument; argument and result are pickled.
        tasks: started in their order.
        workers: processes at a time.
        task_seconds: a task that takes longer has failed; ``START_SECONDS`` more for the first of a process.
        deadline: by ``time.monotonic``; tasks that are not done by then have no outcome.
        line_of: tasks of one line have a process to themselves and go through it one after the other, so that it can
            keep what they share; give them one after the other. None is no line.
    """
    waiting = list(tasks)
    busy: dict[Connection, tuple[_Worker, Any, float]] = {}
    idle: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks_gpu_turns_") as turns:
        try:
            while (waiting or busy) and time.monotonic() < deadline:
                lines = {worker.line for worker, _, _ in busy.values()}
                while len(busy) < workers and (place := _next(waiting, line_of, lines)) is not None:
                    task = waiting.pop(place)
                    lines.add(line := line_of(task))
                    worker = _sent(task, idle, line)
                    fresh = worker is None
                    worker = worker or _start(function, turns, line, task)
                    busy[worker.connection] = (worker, task, time.monotonic() + task_seconds + START_SECONDS * fresh)
                soonest = min(deadline, *(limit for _, _, limit in busy.values()))
                ready = wait(list(busy), timeout=max(0.0, soonest - time.monotonic()))
                for connection in [connection for connection in busy if connection in ready]:
                    worker, task, _ = busy.pop(connection)
                    outcome, usable = _received(worker, task)
                    if usable and (worker.line is None or worker.line in map(line_of, waiting)):
                        idle.append(worker)
                    else:
                        _stop(worker)
                    yield outcome
                for connection, (worker, task, limit) in list(busy.items()):
                    if limit <= time.monotonic() < deadline:
                        del busy[connection]
                        _stop(worker)
                        yield Outcome(task, None, f"took longer than {task_seconds:.0f} s and was stopped")
        finally:
            _stop(*idle, *(worker for worker, _, _ in busy.values()))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it the other tasks of the pool wait, each where it asks for this too or where it ends."""
    if _turns is None:  # called by itself, in no pool
        yield
        return
    device_survives()  # nothing of this task's may run on in another's time
    with _turns.alone():
        try:
            yield
        finally:
            device_survives()


class _Turns:
    """Locks of processes, on two files in ``folder``: a room shared by those who prepare, and the queue before it."""

    def __init__(self, folder: Path) -> None:
        self._room, self._queue = (os.open(folder / name, os.O_CREAT | os.O_RDWR) for name in ("room", "queue"))

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """Share the room, once nobody queues to have it alone."""
        self._enter()
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within ``preparing()``: have the room alone, once all others have left it."""
        fcntl.flock(self._room, fcntl.LOCK_UN)
        fcntl.flock(self._queue, fcntl.LOCK_SH)
        fcntl.flock(self._room, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
            fcntl.flock(self._queue, fcntl.LOCK_UN)
            self._enter()

    def _enter(self) -> None:
        fcntl.flock(self._queue, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_SH)
        fcntl.flock(self._queue, fcntl.LOCK_UN)


def _next(waiting: list[Any], line_of: Line, lines: Collection[Hashable]) -> int | None:
    """The place of the first task that no line holds up."""
    return next((n for n, task in enumerate(waiting) if line_of(task) is None or line_of(task) not in lines), None)


def _sent(task: Any, idle: list[_Worker], line: Hashable) -> _Worker | None:
    """An idle process of the line that has taken the task; None where there is none."""
    for worker in [worker for worker in idle if worker.line == line]:
        idle.remove(worker)
        try:
            worker.connection.send(task)
        except OSError:  # it died meanwhile
            _stop(worker)
            continue
        return worker
    return None


def _start(function: str, turns: str, line: Hashable, task: Any) -> _Worker:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_work, args=(theirs, function, turns), daemon=True)
    process.start()
    theirs.close()
    with contextlib.suppress(OSError):  # one that died at once says nothing, which is waited for
        ours.send(task)
    return _Worker(process, ours, line)


def _stop(*workers: _Worker) -> None:
    for worker in workers:  # all at once: to take a CUDA context down takes a second
        worker.connection.close()
        worker.process.kill()
    for worker in workers:
        worker.process.join(STOP_SECONDS)


def _received(worker: _Worker, task: Any) -> tuple[Outcome, bool]:
    try:
        result, failure, usable = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join(STOP_SECONDS)
        return Outcome(task, None, f"its process died (exit code {worker.process.exitcode})"), False
    return Outcome(task, result, failure), usable


def _work(connection: Connection, function: str, turns: str) -> None:
    global _turns
    module, _, name = function.partition(":")
    _turns = _Turns(Path(turns))
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        message: tuple[Any, str | None, bool]
        try:
            call = getattr(import_module(module), name)  # takes seconds at first, which hold nobody up
            with _turns.preparing():
                message = (call(task), None, device_survives())
        except Exception as error:  # noqa: BLE001 - whatever a kernel throws is an outcome of the sweep
            message = (None, in_short(error), device_survives())
        connection.send(message)


def in_short(error: Exception) -> str:
    """What an error says, in one line."""
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return " ".join(line.strip() for line in lines if line.strip())[:400]


def device_survives() -> bool:
    """Whether the GPU still serves this process, once all that was begun is done."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
