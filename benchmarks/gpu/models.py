"""Part "models": whole networks in fp16 with a bound a neuron, as a server calls them, CUDA graphs for everyone.

unit_fast                 ours
eager                     the sanitised graph operator by operator, in a CUDA graph
reduce_overhead           torch.compile(mode="reduce-overhead") of the sanitised graph
max_autotune              torch.compile(mode="max-autotune") of it, which compiles for minutes
default                   torch.compile of it as it comes, without CUDA graphs
unclamped_MODE            torch.compile in each mode of the network without clamps

All run in channels_last, those of torch.compile with frozen weights. Each is made in a process of its own and compared
with the sanitised (or the plain) graph before it is timed. A call is timed as it is made: with its inputs copied and
its outputs the caller's, back to back. "warmup" is the time that ``warmup([1, 32])`` of ResNet-50 takes: with nothing
cached ("cold"), and in the next process ("cached"). Rows of an earlier run in the same environment are kept.
"""

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.networks import NETWORKS, network, sanitised_network
from benchmarks.gpu.pool import run_tasks
from benchmarks.gpu.session import Session
from benchmarks.gpu.timing import Timing
from benchmarks.results_file import environment
from unit_fast.capture import capture
from unit_fast.runtime.agreement import difference
from unit_fast.runtime.cuda_graphs import cuda_graphs
from unit_fast.runtime.fused import Fused

BATCHES = (32, 1, 256)
CONTENDERS = ("unit_fast", "unclamped_reduce_overhead", "reduce_overhead", "eager")
LATER = ("unclamped_max_autotune", "max_autotune", "unclamped_default", "default")
"""Once the others are done for every network: they take minutes, or tell less."""
TASK_SECONDS = 200.0  # max-autotune compiles for minutes
SAMPLES, SAMPLE_SECONDS = 15, 0.02

Call = Callable[[], Any]


@dataclass(frozen=True)
class Task:
    """One contender on one network at one batch size; as "warmup" without a batch size, what warming up takes."""

    network: str
    batch: int
    contender: str
    dry_run: bool
    caches: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu" if self.dry_run else "cuda", None if self.dry_run else 0)


def measure(session: Session) -> list[str]:
    """Time every contender that was not timed before; rows are written as they come."""
    rows = _kept(session)
    todo = [task for task in planned(session) if _name(task) not in rows]
    for task in todo:
        if session.remaining <= 0:
            break
        function = "benchmarks.gpu.models:warmed_up" if task.caches else "benchmarks.gpu.models:timed"
        # A process for each: what one has compiled, allocated or captured must not serve the next.
        outcomes = run_tasks(function, [task], workers=1, task_seconds=TASK_SECONDS, deadline=session.deadline)
        for outcome in outcomes:
            rows[_name(task)] = {"failure": outcome.failure} if outcome.failure else outcome.result
        session.write_sometimes("models", {"rows": rows, "complete": False})
    figures = {"rows": rows, "ratios": ratios(rows), "complete": all(_name(task) in rows for task in planned(session))}
    session.write("models", figures)
    return summary(figures["ratios"])


def planned(session: Session) -> list[Task]:
    """Every row, the most telling first."""
    if session.dry_run:
        names, batches = ("tiny",), (2,)
    else:
        names, batches = NETWORKS, BATCHES
    tasks = [
        Task(name, batch, contender, session.dry_run)
        for contenders in (CONTENDERS, LATER)
        for batch in batches
        for name in names
        for contender in contenders
    ]
    caches = session.folder / f"warmup_caches_{os.getpid()}"
    # Two processes in turn, over caches that are empty at first.
    warmups = [Task(names[0], 0, contender, session.dry_run, caches) for contender in ("cold", "cached")]
    return [*tasks[: len(CONTENDERS)], *warmups, *tasks[len(CONTENDERS) :]]


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
    program = sanitised_network(task.network, task.device)
    call = program.example.of_size(task.batch)
    (images,) = call.tensors()
    images = images.contiguous(memory_format=torch.channels_last)
    module = program.module
    if task.contender.startswith("unclamped_"):
        model, example = network(task.network, task.device)
        module = capture(model, example)
    expected = module(images)
    started = time.perf_counter()
    run = _MAKERS[task.contender](module, program, images)
    made = time.perf_counter() - started
    found = difference(run(), expected)
    if found is not None:
        raise RuntimeError(f"{task.contender} is wrong: {found}")
    timing = _as_called(run, task.device)
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
    assert task.caches is not None, "a task of this kind has them"
    os.environ["UNIT_FAST_CACHE"] = str(task.caches / "unit_fast")
    os.environ["TRITON_CACHE_DIR"] = str(task.caches / "triton")
    program = sanitised_network(task.network, task.device)
    program.module(*program.example.args)  # the library's own start is not ours
    started = time.perf_counter()
    Fused(program).warmup([2] if task.dry_run else [1, 32])
    return {"seconds": time.perf_counter() - started}


def _as_called(run: Call, device: torch.device) -> Timing:
    once = min(_batch(run, 1, device) for _ in range(3))
    calls = max(1, min(1000, math.ceil(SAMPLE_SECONDS * 1e6 / once)))
    return Timing.of([_batch(run, calls, device) for _ in range(SAMPLES)], calls)


def _batch(run: Call, calls: int, device: torch.device) -> float:
    """Microseconds of ``calls`` calls, back to back."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - started) * 1e6


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
