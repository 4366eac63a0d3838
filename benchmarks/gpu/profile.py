"""Part "profile": which kernels the three worst layers run, and with what registers, shared memory and occupancy.

Worst are those that lose most time to the roofline, over all their occurrences in a network, by the figures of part
"layers", which must have run before. The best of ours, the fused kernel where that is another, and eager are each
called under torch's profiler; what it tells of every launch is averaged by kernel.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.layers import WIDTH, Measurement, candidates, layer_of, operands
from benchmarks.gpu.pool import run_tasks
from benchmarks.gpu.session import Session
from benchmarks.gpu.timing import best_of_cudnn
from benchmarks.layer_calls import eager
from benchmarks.layer_rows import best_of_ours, lost_microseconds

WORST = 3
CALLS = 20
TASK_SECONDS = 60.0
LAUNCH = ("grid", "block", "registers per thread", "shared memory", "blocks per SM", "est. achieved occupancy %")
"""What the trace tells of a kernel's launch, as it is called there."""


@dataclass(frozen=True)
class Task:
    """A layer to profile: its measurement, and the names of our candidates to look at."""

    measurement: Measurement
    candidates: tuple[str, ...]


def measure(session: Session) -> list[str]:
    """Profile the worst layers and write what was found.

    Raises:
        RuntimeError: part "layers" has no results here.
    """
    path = session.folder / f"{session.file_name('layers')}.json"
    if not path.is_file():
        raise RuntimeError(f"{path} is not there; run part layers first: it says which layers are worst")
    worst = worst_of(json.loads(path.read_text())["figures"].get("rows", []))
    started, rows = time.monotonic(), []
    tasks = {task_of(row, session.dry_run): row for row in worst}
    limits: dict[str, Any] = {"task_seconds": TASK_SECONDS, "deadline": session.deadline}
    for outcome in run_tasks("benchmarks.gpu.profile:profiled", tasks, workers=1, **limits):
        row = tasks[outcome.task]
        told = {name: row[name] for name in ("layer", "batch", "networks", "roofline_microseconds", "memory_bound")}
        told |= {"lost_microseconds": lost_microseconds(row), "best": best_of_ours(row)}
        rows.append(told | ({"failure": outcome.failure} if outcome.failure else {"kernels": outcome.result}))
        session.write("profile", {"complete": False, "rows": rows})
    complete = len(rows) == len(worst) > 0
    session.write("profile", {"complete": complete, "rows": rows, "seconds": time.monotonic() - started})
    return [
        f"{row['layer']} batch {row['batch']}: {row['best']} loses {row['lost_microseconds']:.0f} µs" for row in rows
    ]


def worst_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that lose most, each layer once, at the batch size where it is worst."""
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lost_microseconds, reverse=True):
        if best_of_ours(row) is not None:
            found.setdefault(row["layer"], row)
    return list(found.values())[:WORST]


def task_of(row: dict[str, Any], dry_run: bool) -> Task:
    """What to profile of a row: the configuration that was fastest, and the way that was."""
    fused = row["providers"].get("fused", {}).get("configuration")
    best = {"epilogue": " + epilogue", "cudnn graph": "cudnn graph"}.get(best_of_ours(row) or "")
    return Task(Measurement(layer_of(row), row["batch"], dry_run), tuple(name for name in (fused, best) if name))


@torch.inference_mode()
def profiled(task: Task) -> dict[str, list[dict[str, Any]]]:
    """By who runs it (eager, and our candidates by name) the kernels of one call, the longest first."""
    best_of_cudnn()
    measurement = task.measurement
    layer, given = measurement.layer, operands(measurement, 0)
    calls: dict[str, Callable[[], Tensor]] = {"eager": partial(eager, layer, given)}
    for candidate in candidates(layer, given, 1 if measurement.dry_run else WIDTH):
        if any(name in candidate.name for name in task.candidates):
            packed = candidate.provider == "triton"
            calls[candidate.name] = partial(candidate.call, *given.arguments(layer, packed=packed))
    return {name: _kernels(call, "cpu" if measurement.dry_run else "cuda") for name, call in calls.items()}


def _kernels(call: Callable[[], Tensor], device: str) -> list[dict[str, Any]]:
    on_gpu = device == "cuda"
    for _ in range(3):
        call()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as run:
        for _ in range(CALLS if on_gpu else 1):
            call()
        if on_gpu:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        run.export_chrome_trace(str(file))
        trace = json.loads(file.read_text())
    return kernels_of(trace, "kernel" if on_gpu else "cpu_op", CALLS if on_gpu else 1)


def kernels_of(trace: dict[str, Any], category: str, calls: int) -> list[dict[str, Any]]:
    """The kernels of a trace in Chrome's format: how often a call runs each, for how long, and how it is launched."""
    found: dict[str, dict[str, Any]] = {}
    for event in trace["traceEvents"]:
        if event.get("cat") != category or "dur" not in event:
            continue
        launch = {name: event["args"][name] for name in LAUNCH if name in event.get("args", {})}
        kernel = found.setdefault(
            event["name"], {"kernel": event["name"], "launches": 0.0, "microseconds": 0.0, **launch}
        )
        kernel["launches"] += 1 / calls
        kernel["microseconds"] += event["dur"] / calls
    return sorted(found.values(), key=lambda kernel: -kernel["microseconds"])
