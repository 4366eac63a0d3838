"""Tasks in processes of their own, so that neither a kernel that faults nor one that hangs ends a sweep.

An illegal memory access makes a process's CUDA context useless. The process that met one reports it and is replaced;
one that dies or takes too long is replaced as well, and its task counts as failed.
"""

import multiprocessing
import sys
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

START_SECONDS = 60.0
"""How much longer the first task of a process may take: imports, and the start of CUDA."""

_SPAWN = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA


class Outcome(NamedTuple):
    """What came of a task: its result, or why there is none."""

    task: Any
    result: Any
    failure: str | None


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection


def run_tasks(
    function: str, tasks: Iterable[Any], *, workers: int, task_seconds: float, deadline: float
) -> Generator[Outcome, None, None]:
    """The outcomes of ``function`` for each task, as they come.

    Args:
        function: ``"module:name"`` of a function of one argument; argument and result are pickled.
        tasks: started in their order.
        workers: processes at a time.
        task_seconds: a task that takes longer has failed; ``START_SECONDS`` more for the first of a process.
        deadline: by ``time.monotonic``; tasks that are not done by then have no outcome.
    """
    waiting = deque(tasks)
    busy: dict[Connection, tuple[_Worker, Any, float]] = {}
    idle: list[_Worker] = []
    try:
        while (waiting or busy) and time.monotonic() < deadline:
            while waiting and len(busy) < workers:
                fresh = not idle
                worker = _start(function) if fresh else idle.pop()
                task = waiting.popleft()
                worker.connection.send(task)
                busy[worker.connection] = (worker, task, time.monotonic() + task_seconds + START_SECONDS * fresh)
            soonest = min(deadline, *(limit for _, _, limit in busy.values()))
            for ready in wait(list(busy), timeout=max(0.0, soonest - time.monotonic())):
                worker, task, _ = busy.pop(ready)
                outcome, usable = _received(worker, task)
                if usable:
                    idle.append(worker)
                yield outcome
            for connection, (worker, task, limit) in list(busy.items()):
                if limit <= time.monotonic() < deadline:
                    del busy[connection]
                    _stop(worker)
                    yield Outcome(task, None, f"took longer than {task_seconds:.0f} s and was stopped")
    finally:
        for worker in [*idle, *(worker for worker, _, _ in busy.values())]:
            _stop(worker)


def _start(function: str) -> _Worker:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_work, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _stop(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.join()


def _received(worker: _Worker, task: Any) -> tuple[Outcome, bool]:
    try:
        result, failure, usable = worker.connection.recv()
    except EOFError:
        worker.process.join()
        return Outcome(task, None, f"its process died (exit code {worker.process.exitcode})"), False
    if not usable:
        _stop(worker)
    return Outcome(task, result, failure), usable


def _work(connection: Connection, function: str) -> None:
    module, _, name = function.partition(":")
    call = getattr(import_module(module), name)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            message = (call(task), None, True)
        except Exception as error:  # noqa: BLE001 - whatever a kernel throws is an outcome of the sweep
            message = (None, _in_short(error), _cuda_survives())
        connection.send(message)


def _in_short(error: Exception) -> str:
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return " ".join(line.strip() for line in lines if line.strip())[:400]


def _cuda_survives() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
