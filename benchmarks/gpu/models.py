"""Part "models": whole networks in fp16 with a bound a neuron, as a server calls them, CUDA graphs for everyone.

unit_fast                 ours, by the triton backend
auto                      ours as it comes: that, or torch.compile in a CUDA graph of ours, whichever it measures faster
eager                     the sanitised graph operator by operator, in a CUDA graph
reduce_overhead           torch.compile(mode="reduce-overhead") of the sanitised graph
max_autotune              torch.compile(mode="max-autotune") of it, which compiles for minutes
default                   torch.compile of it as it comes, without CUDA graphs
unclamped_MODE            torch.compile in each mode of the network without clamps

All run in channels_last, those of torch.compile with frozen weights, cuDNN's convolutions as torch takes them unless
told otherwise. A network at a batch size has a process, in which one contender after the other is made, compared with
the sanitised (or the plain) graph, and timed. Networks are made side by side, but not with max-autotune, which takes
times itself; while one is timed the others wait. Ours takes what part "dispatch" measured. A call is timed as it is
made: with its inputs copied and its outputs the caller's, back to back. "warmup" is the time that ResNet-50's
``warmup([1, 32])`` takes: with nothing cached ("cold"), and in the next process ("cached"); it comes last but for what
takes minutes. Rows of an earlier run in the same environment are kept.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.dispatch import cache_of
from benchmarks.gpu.networks import NETWORKS, network, sanitised_network
from benchmarks.gpu.pool import alone, device_survives, in_short, run_tasks
from benchmarks.gpu.session import Session
from benchmarks.gpu.timing import time_as_called
from benchmarks.results_file import environment
from unit_fast.capture import capture
from unit_fast.runtime.agreement import difference
from unit_fast.runtime.automatic import Automatic
from unit_fast.runtime.cuda_graphs import cuda_graphs
from unit_fast.runtime.fused import Fused
from unit_fast.runtime.program import Program
from unit_fast.runtime.runner import Runner

BATCHES = (32, 1, 256)
UNCLAMPED = "unclamped_"
CONTENDERS = ("unit_fast", "unclamped_reduce_overhead", "reduce_overhead", "eager")
LATER = ("auto", "unclamped_max_autotune", "max_autotune", "unclamped_default", "default")
"""Once the others are done for every network: they take minutes, or tell less."""
TASK_SECONDS = 300.0  # max-autotune compiles for minutes
SIDE_BY_SIDE = 12
"""Processes: each holds a network, and at batch 256 its activations."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Task:
    """Contenders on one network at one batch size; "cold" and "cached", without one, are what warming up takes.

    Attributes:
        network: of ``networks.NETWORKS``.
        batch: samples a call; 0 for a warm-up.
        contenders: one after the other.
        dry_run: on the CPU.
        folder: of the results, where part "dispatch" leaves its measurements; of a warm-up the caches.
        deadline: by ``time.monotonic``; contenders that are not begun by then are left out.
    """

    network: str
    batch: int
    contenders: tuple[str, ...]
    dry_run: bool
    folder: Path
    deadline: float

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu") if self.dry_run else torch.device("cuda", 0)

    def name(self, contender: str) -> str:
        """Of a row."""
        return f"{self.network}/{self.batch or 'warmup'}/{contender}"


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
                [rest for task in stage.tasks if (rest := _without(task, rows)).contenders],
                workers=stage.workers,
                task_seconds=TASK_SECONDS,
                deadline=session.deadline,
            )
            for task, result, failure in outcomes:
                found = result if failure is None else {one: {"failure": failure} for one in task.contenders}
                rows |= {task.name(contender): row for contender, row in found.items()}
                session.write("models", {"rows": rows, "ratios": ratios(rows), "complete": False})
    complete = all(task.name(one) in rows for stage in stages for task in stage.tasks for one in task.contenders)
    found = ratios(rows)
    session.write("models", {"rows": rows, "ratios": found, "complete": complete})
    failures = [f"{name}: {row['failure']}" for name, row in rows.items() if "failure" in row]
    return [*summary(found), *failures]


def planned(session: Session, caches: Path) -> list[Stage]:
    """Every row, the most telling first."""
    names: Sequence[str] = ("tiny",) if session.dry_run else NETWORKS
    batches = (2,) if session.dry_run else BATCHES

    def tasks(contenders: tuple[str, ...]) -> list[Task]:
        return [
            Task(name, batch, contenders, session.dry_run, session.folder, session.deadline)
            for name in names
            for batch in batches
        ]

    # Two processes in turn, over caches that are empty at first.
    warmups = [
        Task(names[0], 0, (contender,), session.dry_run, caches, session.deadline) for contender in ("cold", "cached")
    ]
    return [
        Stage("timed", min(SIDE_BY_SIDE, session.workers), tasks(CONTENDERS)),
        Stage("warmed_up", 1, warmups),
        Stage("timed", 1, tasks(LATER)),
    ]


def _without(task: Task, rows: dict[str, Any]) -> Task:
    return replace(task, contenders=tuple(one for one in task.contenders if task.name(one) not in rows))


def _kept(session: Session) -> dict[str, Any]:
    path = session.folder / f"{session.file_name('models')}.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    if found.get("environment") != environment():
        return {}
    return {name: row for name, row in found["figures"]["rows"].items() if "failure" not in row}


@torch.no_grad()
def timed(task: Task) -> dict[str, dict[str, Any]]:
    """Make, verify and time the contenders, one after the other."""
    os.environ["UNIT_FAST_CACHE"] = str(cache_of(task.folder))
    program = sanitised_network(task.network, task.device)
    plain = capture(*network(task.network, task.device))
    (images,) = program.example.of_size(task.batch).tensors()
    images = images.contiguous(memory_format=torch.channels_last)
    expected = {"": program.module(images), UNCLAMPED: plain(images)}
    rows: dict[str, dict[str, Any]] = {}
    for contender in task.contenders:
        if time.monotonic() >= task.deadline:
            break
        clamps = UNCLAMPED if contender.startswith(UNCLAMPED) else ""
        try:
            rows[contender] = _row(
                task, contender, plain if clamps else program.module, program, images, expected[clamps]
            )
        except Exception as error:
            if not device_survives():
                raise
            rows[contender] = {"failure": in_short(error)}
        torch._dynamo.reset()  # with the memory that it held
        torch.cuda.empty_cache()
    return rows


def _row(
    task: Task, contender: str, module: Any, program: Program, images: torch.Tensor, expected: Any
) -> dict[str, Any]:
    started = time.perf_counter()
    run = _MAKERS[contender](module, program, images)
    made = time.perf_counter() - started
    found = difference(run(), expected)
    if found is not None:
        raise RuntimeError(f"{contender} is wrong: {found}")
    with alone():
        timing = time_as_called(run, task.device.type)
    return {
        "microseconds": asdict(timing),
        "seconds_to_make": made,
        "images_per_second": 1e6 * task.batch / timing.median,
    }


def _eager(module: Any, program: Any, images: torch.Tensor) -> Call:  # noqa: ARG001
    if not images.is_cuda:
        return partial(module, images)
    graphs = cuda_graphs(lambda tensors: (module(*tensors),), [0], images.device)
    graphs.warm([images])
    return lambda: graphs([images])[0]


def _compiled(mode: str, module: Any, program: Any, images: torch.Tensor) -> Call:  # noqa: ARG001
    import torch._inductor.config as inductor

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


def _auto(module: Any, program: Any, images: torch.Tensor) -> Call:  # noqa: ARG001
    runner = _as_it_comes(program)
    runner.warmup([len(images)])
    return partial(runner, images)


def _as_it_comes(program: Program) -> Runner:
    """What ``sanitize`` takes on a GPU; in a dry run our kernels, for which it takes something else."""
    return Automatic(program) if program.example.tensors()[0].is_cuda else Fused(program)


_MAKERS: dict[str, Callable[..., Call]] = {
    "eager": _eager,
    "unit_fast": _unit_fast,
    "auto": _auto,
    **{
        f"{clamps}{mode.replace('-', '_')}": partial(_compiled, mode)
        for clamps in ("", UNCLAMPED)
        for mode in ("default", "reduce-overhead", "max-autotune")
    },
}


def warmed_up(task: Task) -> dict[str, dict[str, Any]]:
    """Seconds that ``warmup([1, 32])`` takes, over the caches of the task alone."""
    os.environ["UNIT_FAST_CACHE"] = str(task.folder / "unit_fast")
    os.environ["TRITON_CACHE_DIR"] = str(task.folder / "triton")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(task.folder / "inductor")
    program = sanitised_network(task.network, task.device)
    program.module(*program.example.args)  # the library's own start is not ours
    started = time.perf_counter()
    _as_it_comes(program).warmup([2] if task.dry_run else [1, 32])
    (contender,) = task.contenders
    return {contender: {"seconds": time.perf_counter() - started}}


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
