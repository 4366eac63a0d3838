"""Part "dispatch": the table of choices for this GPU, which ships with the package.

Every operator of the fused networks at batch 32, 1 and 256 in fp16, each candidate verified and then timed by replay of
a CUDA graph, exactly as ``warmup()`` does it. All cores verify and so compile first. Measurements go to a cache beside
the results, from which part "models" warms up and the next run goes on where this one was cut off; the table is written
from whatever is there.
"""

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.networks import NETWORKS, sanitised_network
from benchmarks.gpu.pool import alone, device_survives, in_short, run_tasks
from benchmarks.gpu.session import Session
from benchmarks.gpu.timing import best_of_cudnn
from benchmarks.results_file import RESULTS
from unit_fast.kernels.dispatch import tuning
from unit_fast.kernels.dispatch.candidates import candidates_for
from unit_fast.kernels.dispatch.clock import Clock, CudaGraphClock
from unit_fast.kernels.dispatch.dispatcher import Dispatcher
from unit_fast.kernels.dispatch.environment import environment_of
from unit_fast.kernels.dispatch.problem import Problem
from unit_fast.kernels.dispatch.store import TABLES, DispatchWarning, Store, write_table
from unit_fast.kernels.dispatch.verify import difference, expected, random_operands
from unit_fast.runtime.kernel_graph import KernelGraph

BATCHES = (32, 1, 256)
COMPILING_SHARE = 0.5
"""Of the part's time: what is not compiled by then is compiled when it is timed, while others are not."""
TASK_SECONDS = 120.0
SIDE_BY_SIDE = 8
"""Processes that compare what they time next; one of them times."""


@dataclass(frozen=True)
class Network:
    """A network, and the batch sizes at which it is called."""

    name: str
    batches: tuple[int, ...]
    dry_run: bool


@dataclass(frozen=True)
class Task:
    """A problem whose candidates are measured into the cache in ``folder``."""

    problem: Problem
    dry_run: bool
    folder: Path


def measure(session: Session) -> list[str]:
    """Find the problems, verify and time their candidates, write the table."""
    started, deadline = time.monotonic(), session.deadline
    folder = cache_of(session.folder)
    names, batches = (("tiny",), (2,)) if session.dry_run else (NETWORKS, BATCHES)
    networks = [Network(name, batches, session.dry_run) for name in names]
    asked: dict[str, list[list[Problem]]] = {}
    limits: dict[str, Any] = {"task_seconds": TASK_SECONDS, "deadline": deadline}
    failures: list[str] = []
    for outcome in run_tasks("benchmarks.gpu.dispatch:problems", networks, workers=session.workers, **limits):
        if outcome.failure:
            failures.append(f"{outcome.task.name}: {outcome.failure}")
        else:
            asked[outcome.task.name] = outcome.result
    found = [
        problem for place in range(len(batches)) for name in names if name in asked for problem in asked[name][place]
    ]
    tasks = [Task(problem, session.dry_run, folder) for problem in dict.fromkeys(found)]
    compile_until = time.monotonic() + COMPILING_SHARE * max(0.0, deadline - time.monotonic())
    dropped: dict[str, dict[str, str]] = {}
    for outcome in run_tasks(
        "benchmarks.gpu.dispatch:verify",
        tasks,
        workers=session.workers,
        task_seconds=TASK_SECONDS,
        deadline=compile_until,
    ):
        reasons = {"all": outcome.failure} if outcome.failure else outcome.result
        if reasons:
            dropped[outcome.task.problem.key] = reasons
    rows: dict[str, dict[str, Any]] = {}
    figures = {"problems": len(tasks), "failures": failures, "dropped": dropped}
    side_by_side = min(SIDE_BY_SIDE, session.workers)
    for outcome in run_tasks("benchmarks.gpu.dispatch:timed", tasks, workers=side_by_side, **limits):
        rows[outcome.task.problem.key] = {"failure": outcome.failure} if outcome.failure else outcome.result
        session.write_sometimes("dispatch", figures | {"choices": rows, "complete": False})
    written = _write_table(session, folder)
    seconds = time.monotonic() - started
    complete = not failures and len(rows) == len(tasks)
    session.write("dispatch", figures | {"choices": rows, "complete": complete, "seconds": seconds})
    winners = Counter(str(row["candidate"]).split()[0] for row in rows.values() if "candidate" in row)
    return [
        f"{len(rows)} of {len(tasks)} problems; fastest: {dict(winners)}",
        f"{len(dropped)} problems with candidates that were dropped",
        *failures,
        f"table in {written}",
    ]


def cache_of(folder: Path) -> Path:
    """Where measurements are kept, beside the results in ``folder``."""
    return folder / "dispatch_cache"


def problems(network: Network) -> list[list[Problem]]:
    """What the fused network asks for, by batch size."""
    device = _device(network.dry_run)
    environment = environment_of(device)
    program = sanitised_network(network.name, device)
    graph = KernelGraph(program.module, Dispatcher(environment, device, Store(environment), None))
    calls = [program.example.of_size(batch) for batch in network.batches]
    with torch.no_grad():
        return [list(dict.fromkeys(graph.problems(graph.flat.tensors(call.args, call.kwargs)))) for call in calls]


def verify(task: Task) -> dict[str, str]:
    """The candidates that are wrong, and how; compiles all by the way.

    Raises:
        RuntimeError: one of them faulted, and the device serves this process no more.
    """
    device = _device(task.dry_run)
    operands = random_operands(task.problem, device)
    truth = expected(task.problem, operands)
    reasons = {}
    for candidate in candidates_for(task.problem, environment_of(device))[:-1]:
        try:
            reason = difference(task.problem, candidate, operands, truth)
        except Exception as error:  # compilers and drivers raise anything; the others are tried too
            if not device_survives():
                raise RuntimeError(f"{candidate.name}: {in_short(error)}") from error
            reason = f"it cannot: {in_short(error)}"
        if reason is not None:
            reasons[candidate.name] = reason
    return reasons


def timed(task: Task) -> dict[str, Any]:
    """The choice for the problem, with every candidate's time."""
    best_of_cudnn()
    device = _device(task.dry_run)
    environment = environment_of(device)
    clock = _Alone(_HostClock() if task.dry_run else CudaGraphClock(device))
    dispatcher = Dispatcher(environment, device, Store(environment, task.folder), clock)
    operands = random_operands(task.problem, device)
    with torch.no_grad(), alone():  # cuDNN takes what is fastest at its first call
        for candidate in candidates_for(task.problem, environment):
            if candidate.provider == "library":
                with contextlib.suppress(Exception):  # what fails here is dropped below, with the reason
                    candidate.call(*operands)
    with tuning(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DispatchWarning)  # what was dropped stands in the result
        choice = dispatcher.choose(task.problem.operator, operands)
    return {
        "candidate": choice.candidate.name,
        "microseconds": dict(choice.microseconds),
        "dropped": dict(choice.dropped),
    }


def _device(dry_run: bool) -> torch.device:
    return torch.device("cpu") if dry_run else torch.device("cuda", 0)


class _Alone:
    """A clock among processes that prepare side by side."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, name: str, run: Callable[[], Tensor]) -> float:
        with alone():
            return self._clock(name, run)

    def release(self) -> None:
        """Let go of the memory that timing took."""
        self._clock.release()


class _HostClock:
    """By the host's clock: for dry runs."""

    def __call__(self, name: str, run: Callable[[], Tensor]) -> float:  # noqa: ARG002 - the protocol's
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1e6

    def release(self) -> None:
        """Nothing is held."""


def _write_table(session: Session, folder: Path) -> Path:
    environment = environment_of(torch.device(session.device))
    # What is not for the repository's own results is not for its package either.
    path = (TABLES if session.folder == RESULTS else session.folder) / f"{environment.name}.json"
    write_table(path, environment, Store(environment, folder).records())
    return path
