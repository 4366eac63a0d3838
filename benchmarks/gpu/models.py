"""Part "models": whole networks in fp16 with a bound a neuron, as a server calls them, CUDA graphs for everyone.

unit_fast                 ours
eager                     the sanitised graph operator by operator, in a CUDA graph
reduce_overhead           torch.compile(mode="reduce-overhead") of the sanitised graph
max_autotune              torch.compile(mode="max-autotune") of it, which compiles for minutes
default                   torch.compile of it as it comes, without CUDA graphs
unclamped_MODE            torch.compile in each mode of the network without clamps

All run in channels_last, those of torch.compile with frozen weights. Each has a process for a network and is compared
with the sanitised (or the plain) graph before it is timed. Several are made side by side, but for max-autotune, which
takes times itself; while one is timed the others wait. Ours takes what part "dispatch" measured. A call is timed as it
is made: with its inputs copied and its outputs the caller's, back to back. "warmup" is the time that ResNet-50's
``warmup([1, 32])`` takes: with nothing cached ("cold"), and in the next process ("cached"); it comes last but for what
takes minutes. Rows of an earlier run in the same environment are kept.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.dispatch import cache_of
from benchmarks.gpu.networks import NETWORKS, network, sanitised_network
from benchmarks.gpu.pool import alone, run_tasks
from benchmarks.gpu.session import Session
from benchmarks.gpu.timing import time_as_called
from benchmarks.results_file import environment
from unit_fast.capture import capture
from unit_fast.runtime.agreement import difference
from unit_fast.runtime.cuda_graphs import cuda_graphs
from unit_fast.runtime.fused import Fused
from unit_fast.runtime.program import Program

BATCHES = (32, 1, 256)
CONTENDERS = ("unit_fast", "unclamped_reduce_overhead", "reduce_overhead", "eager")
LATER = ("unclamped_max_autotune", "max_autotune", "unclamped_default", "default")
"""Once the others are done for every network: they take minutes, or tell less."""
TASK_SECONDS = 200.0  # max-autotune compiles for minutes
SIDE_BY_SIDE = 8
"""Processes: each holds a network, and at batch 256 its activations."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Task:
    """One contender on one network at one batch size; "cold" and "cached", without one, are what warming up takes."""

    network: str
    batch: int
    contender: str
    dry_run: bool
    folder: Path
    """Of the results, where part "dispatch" leaves its measurements; of a warm-up the caches."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu") if self.dry_run else torch.device("cuda", 0)


@dataclass(frozen=True)
class Stage:
    """Tasks that one function does, in so many processes side by side."""

    function: str
    workers: int
    tasks: Sequence[Task]


def measure(session: Session) -> list[str]:
    """Time every contender that was not timed before; rows are written as they come."""
    rows = _kept(session)
    with tempfile.TemporaryDirectory(prefix="warmup_caches_") as caches:
        stages = planned(session, Path(caches))
        for stage in stages:
            outcomes = run_tasks(
                f"benchmarks.gpu.models:{stage.function}",
                [task for task in stage.tasks if _name(task) not in rows],
                workers=stage.workers,
                task_seconds=TASK_SECONDS,
                deadline=session.deadline,
                line_of=lambda task: (task.network, task.contender),
            )
            for outcome in outcomes:
                rows[_name(outcome.task)] = {"failure": outcome.failure} if outcome.failure else outcome.result
                session.write_sometimes("models", {"rows": rows, "ratios": ratios(rows), "complete": False})
    complete = all(_name(task) in rows for stage in stages for task in stage.tasks)
    found = ratios(rows)
    session.write("models", {"rows": rows, "ratios": found, "complete": complete})
    return summary(found)


def planned(session: Session, caches: Path) -> list[Stage]:
    """Every row, the most telling first."""
    names: Sequence[str] = ("tiny",) if session.dry_run else NETWORKS
    batches = (2,) if session.dry_run else BATCHES

    def tasks(contenders: Sequence[str]) -> list[Task]:
        return [
            Task(name, batch, contender, session.dry_run, session.folder)
            for name in names
            for contender in contenders
            for batch in batches
        ]

    # Two processes in turn, over caches that are empty at first.
    warmups = [Task(names[0], 0, contender, session.dry_run, caches) for contender in ("cold", "cached")]
    return [
        Stage("timed", min(SIDE_BY_SIDE, session.workers), tasks(CONTENDERS)),
        Stage("warmed_up", 1, warmups),
        Stage("timed", 1, tasks(LATER)),
    ]


def _name(task: Task) -> str:
    return f"{task.network}/{task.batch or 'warmup'}/{task.contender}"


def _kept(session: Session) -> dict[str, Any]:
    path = session.folder / f"{session.file_name('models')}.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    if found.get("environment") != environment():
        return {}
    return {name: row for name, row in found["figures"]["rows"].items() if "failure" not in row}


def timed(task: Task) -> dict[str, Any]:
    """Make, verify and time one contender."""
    torch.backends.cudnn.benchmark = True
    torch.set_grad_enabled(False)
    torch.cuda.empty_cache()  # what another batch size held
    os.environ["UNIT_FAST_CACHE"] = str(cache_of(task.folder))
    program = _program(task.network, task.device)
    (images,) = program.example.of_size(task.batch).tensors()
    images = images.contiguous(memory_format=torch.channels_last)
    module = _plain(task.network, task.device) if task.contender.startswith("unclamped_") else program.module
    with alone():  # cuDNN takes what is fastest now, for this process
        expected = module(images)
    started = time.perf_counter()
    run = _MAKERS[task.contender](module, program, images)
    made = time.perf_counter() - started
    found = difference(run(), expected)
    if found is not None:
        raise RuntimeError(f"{task.contender} is wrong: {found}")
    with alone():
        timing = time_as_called(run, task.device.type)
    return {
        "microseconds": asdict(timing),
        "seconds_to_make": made,
        "images_per_second": 1e6 * task.batch / timing.median,
    }


@cache
def _program(name: str, device: torch.device) -> Program:
    return sanitised_network(name, device)


@cache
def _plain(name: str, device: torch.device) -> Any:
    return capture(*network(name, device))


def _eager(module: Any, program: Any, images: torch.Tensor) -> Call:  # noqa: ARG001
    if not images.is_cuda:
        return partial(module, images)
    graphs = cuda_graphs(lambda tensors: (module(*tensors),), [0], images.device)
    graphs.warm([images])
    return lambda: graphs([images])[0]


def _compiled(mode: str, module: Any, program: Any, images: torch.Tensor) -> Call:  # noqa: ARG001
    import torch._inductor.config as inductor

    torch._dynamo.reset()  # what was compiled for another batch size
    inductor.freezing = True
    if mode == "max-autotune":  # nothing runs beside it
        inductor.compile_threads = os.cpu_count() or 1
    compiled = torch.compile(module, mode=mode if images.is_cuda else "default", dynamic=False)
    for _ in range(4):  # compiles, then captures
        compiled(images)
    return partial(compiled, images)


def _unit_fast(module: Any, program: Any, images: torch.Tensor) -> Call:  # noqa: ARG001
    runner = Fused(program)
    runner.warmup([len(images)])
    return partial(runner, images)


_MAKERS: dict[str, Callable[..., Call]] = {
    "eager": _eager,
    "unit_fast": _unit_fast,
    **{
        f"{clamps}{mode.replace('-', '_')}": partial(_compiled, mode)
        for clamps in ("", "unclamped_")
        for mode in ("default", "reduce-overhead", "max-autotune")
    },
}


def warmed_up(task: Task) -> dict[str, Any]:
    """Seconds that ``warmup([1, 32])`` takes, over the caches of the task alone."""
    os.environ["UNIT_FAST_CACHE"] = str(task.folder / "unit_fast")
    os.environ["TRITON_CACHE_DIR"] = str(task.folder / "triton")
    program = sanitised_network(task.network, task.device)
    program.module(*program.example.args)  # the library's own start is not ours
    started = time.perf_counter()
    Fused(program).warmup([2] if task.dry_run else [1, 32])
    return {"seconds": time.perf_counter() - started}


def ratios(rows: dict[str, Any]) -> dict[str, dict[str, float]]:
    """How many times as fast ours is as each other contender, by network and batch size."""
    medians: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        case, contender = name.rsplit("/", 1)
        if "microseconds" in row:
            medians.setdefault(case, {})[contender] = row["microseconds"]["median"]
    return {
        case: {contender: value / found["unit_fast"] for contender, value in found.items() if contender != "unit_fast"}
        for case, found in medians.items()
        if "unit_fast" in found
    }


def summary(found: dict[str, dict[str, float]]) -> list[str]:
    """A line a contender: the geometric mean over all cases, and the worst of them."""
    lines = []
    for contender in (*CONTENDERS[1:], *LATER):
        values = {case: by[contender] for case, by in found.items() if contender in by}
        if values:
            worst = min(values, key=values.__getitem__)
            mean = statistics.geometric_mean(values.values())
            lines.append(
                f"over {contender}: {mean:.2f}× in the mean of {len(values)}, at least {values[worst]:.2f}× ({worst})"
            )
    return lines
