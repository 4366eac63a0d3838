"""Part "dispatch": the table of choices for this GPU, which ships with the package.

Every operator of the fused networks at batch 32, 1 and 256 in fp16, each candidate verified and then timed by replay of
a CUDA graph, exactly as ``warmup()`` does it. All cores verify and so compile first. Measurements go to a cache beside
the results, so that a run that was cut off is continued by the next; the table is written from whatever is there.
"""

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
from benchmarks.gpu.pool import run_tasks
from benchmarks.gpu.session import Session
from unit_fast.kernels.dispatch import tuning
from unit_fast.kernels.dispatch.candidates import candidates_for
from unit_fast.kernels.dispatch.clock import CudaGraphClock
from unit_fast.kernels.dispatch.dispatcher import Dispatcher
from unit_fast.kernels.dispatch.environment import environment_of
from unit_fast.kernels.dispatch.problem import Problem
from unit_fast.kernels.dispatch.store import TABLES, DispatchWarning, Store, write_table
from unit_fast.kernels.dispatch.verify import difference, expected, random_operands
from unit_fast.runtime.kernel_graph import KernelGraph

BATCHES = (32, 1, 256)
COMPILING_SHARE = 0.5
"""Of the part's time: what is not compiled by then is compiled when it is timed, on one core."""
TASK_SECONDS = 120.0


@dataclass(frozen=True)
class Task:
    """A network's problems at one batch size, or one problem of them."""

    network: str
    batch: int
    dry_run: bool
    folder: Path
    problem: Problem | None = None

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu" if self.dry_run else "cuda", None if self.dry_run else 0)


def measure(session: Session) -> list[str]:
    """Find the problems, verify and time their candidates, write the table."""
    started, deadline = time.monotonic(), session.deadline
    folder = session.folder / "dispatch_cache"
    names, batches = (("tiny",), (2,)) if session.dry_run else (NETWORKS, BATCHES)
    networks = [Task(name, batch, session.dry_run, folder) for batch in batches for name in names]
    found: dict[Problem, Task] = {}
    limits: dict[str, Any] = {"task_seconds": TASK_SECONDS, "deadline": deadline}
    failures: list[str] = []
    for outcome in run_tasks("benchmarks.gpu.dispatch:problems", networks, workers=1, **limits):
        if outcome.failure:
            failures.append(f"{outcome.task.network} at batch {outcome.task.batch}: {outcome.failure}")
        for problem in outcome.result or ():
            task: Task = outcome.task
            found.setdefault(problem, Task(task.network, task.batch, task.dry_run, folder, problem))
    tasks = list(found.values())
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
    for outcome in run_tasks("benchmarks.gpu.dispatch:timed", tasks, workers=1, **limits):
        rows[outcome.task.problem.key] = {"failure": outcome.failure} if outcome.failure else outcome.result
        session.write_sometimes("dispatch", figures | {"choices": rows, "complete": False})
    written = _write_table(session, folder)
    seconds = time.monotonic() - started
    session.write("dispatch", figures | {"choices": rows, "complete": len(rows) == len(tasks), "seconds": seconds})
    winners = Counter(str(row["candidate"]).split()[0] for row in rows.values() if "candidate" in row)
    return [
        f"{len(rows)} of {len(tasks)} problems; fastest: {dict(winners)}",
        f"{len(dropped)} problems with candidates that were dropped",
        f"table in {written}",
    ]


def problems(task: Task) -> list[Problem]:
    """What the fused network asks for at this batch size."""
    seen: list[Problem] = []

    def noted(problem: Problem, environment: Any) -> Any:
        seen.append(problem)
        return candidates_for(problem, environment)[-1:]

    environment = environment_of(task.device)
    dispatcher = Dispatcher(environment, task.device, Store(environment, task.folder), None, candidates=noted)
    program = sanitised_network(task.network, task.device)
    graph = KernelGraph(program.module, dispatcher)
    call = program.example.of_size(task.batch)
    with torch.no_grad():
        graph(graph.flat.tensors(call.args, call.kwargs))
    return list(dict.fromkeys(seen))


def verify(task: Task) -> dict[str, str]:
    """The candidates that are wrong, and how; compiles all by the way."""
    assert task.problem is not None, "a task of this kind has one"
    environment = environment_of(task.device)
    operands = random_operands(task.problem, task.device)
    truth = expected(task.problem, operands)
    reasons = {}
    for candidate in candidates_for(task.problem, environment)[:-1]:
        try:
            reason = difference(task.problem, candidate, operands, truth)
        except ValueError as error:
            reason = f"it cannot: {error}"
        if reason is not None:
            reasons[candidate.name] = reason
    return reasons


def timed(task: Task) -> dict[str, Any]:
    """The choice for the problem, with every candidate's time."""
    assert task.problem is not None, "a task of this kind has one"
    torch.backends.cudnn.benchmark = True  # the library at its best
    environment = environment_of(task.device)
    clock = _HostClock() if task.dry_run else CudaGraphClock(task.device)
    dispatcher = Dispatcher(environment, task.device, Store(environment, task.folder), clock)
    with tuning(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DispatchWarning)  # what was dropped stands in the result
        choice = dispatcher.choose(task.problem.operator, random_operands(task.problem, task.device))
    return {
        "candidate": choice.candidate.name,
        "microseconds": dict(choice.microseconds),
        "dropped": dict(choice.dropped),
    }


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
    path = (session.folder if session.dry_run else TABLES) / f"{environment.name}.json"
    write_table(path, environment, Store(environment, folder).records())
    return path
