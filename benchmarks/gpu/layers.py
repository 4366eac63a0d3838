"""Part "layers": the layers of networks in fp16, by several providers, each verified before it is timed.

library   cuDNN's convolution or cuBLAS's product with its bias, and nothing else
eager     the same, then residual, activation and clamp as torch's own kernels
compile   torch.compile's compiler, frozen weights: the library and one kernel for the rest; for ``COMPILED`` only
epilogue  the library without bias, then our pointwise kernel for all the rest
cudnn graph  the whole as one graph of cuDNN's, where that is installed and can
fused     our kernel for the whole, the fastest of the configurations that the shape leaves

At batch 1 operands stay in L2 ("warm"), as in a network whose last layer has just written them; larger batches are
timed with L2 "cold" (see ``timing``). All cores verify and so compile first. What is timed is prepared side by side;
nothing else runs while times are taken.
"""

import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import roofline
from benchmarks.gpu.environment import ceilings_of
from benchmarks.gpu.pool import alone, device_survives, in_short, run_tasks
from benchmarks.gpu.session import Session
from benchmarks.gpu.timing import L2, best_of_cudnn, sets_for, time_calls
from benchmarks.layer_calls import Operands, compiled, eager, library, operands_of
from benchmarks.layer_rows import best_of_ours
from benchmarks.shapes import NETWORKS, Layer, merged
from unit_fast.kernels.agreement import ROUNDED_TWICE, error, tolerance_of
from unit_fast.kernels.checks import conv_size
from unit_fast.kernels.dispatch.candidates import REFERENCES, Candidate, candidates_for
from unit_fast.kernels.dispatch.environment import environment_of
from unit_fast.kernels.dispatch.problem import Problem

BATCHES = (256, 1, 32)
DTYPE, DTYPE_NAME = torch.float16, "fp16"
WIDTH = 4
"""Configurations a layer that are compiled, verified and timed."""
COMPILED = ("resnet50", 256)
"""The network and batch size whose layers are compiled too: two seconds each, on one core."""
VERIFYING_SHARE = 0.45
"""Of the part's time: what is not verified by then is not timed."""
TASK_SECONDS = 90.0
SIDE_BY_SIDE = 6
"""Processes that prepare what they time next; one of them times."""
FAULT = "fault: "
"""How the verdict on a candidate begins that took the device from its process."""
LIBRARY_TOLERANCE = ROUNDED_TWICE * tolerance_of(DTYPE)


@dataclass(frozen=True)
class Measurement:
    """One layer at one batch size."""

    layer: Layer
    batch: int
    dry_run: bool
    verified: tuple[str, ...] = ()  # names of candidates
    without: tuple[str, ...] = ()  # of those that are not to be tried again


def measure(session: Session) -> list[str]:
    """Capture the networks, verify every candidate, time what is right; rows are written as they come."""
    started, ends = time.monotonic(), session.deadline
    ceilings = ceilings_of(session, DTYPE_NAME)
    figures: dict[str, Any] = {"complete": False, "dtype": DTYPE_NAME, "ceilings": asdict(ceilings), "dropped": []}
    todo, figures["failures"] = planned(session)
    verify_until = time.monotonic() + VERIFYING_SHARE * session.remaining
    verified: list[Measurement] = []
    for task, verdicts in _verified(todo, session.workers, verify_until):
        if bad := {name: verdict for name, verdict in verdicts.items() if verdict}:
            figures["dropped"].append({"layer": task.layer.name, "batch": task.batch, "candidates": bad})
        good = tuple(name for name, verdict in verdicts.items() if not verdict)
        verified.append(Measurement(task.layer, task.batch, task.dry_run, good))
    figures["verifying_seconds"] = time.monotonic() - started
    session.write("layers", figures)
    places = {(task.layer, task.batch): place for place, task in enumerate(todo)}
    verified.sort(key=lambda task: places[task.layer, task.batch])
    found: dict[int, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for outcome in run_tasks(
        "benchmarks.gpu.layers:timed",
        verified,
        workers=min(SIDE_BY_SIDE, session.workers),
        task_seconds=TASK_SECONDS,
        deadline=ends,
    ):
        row = _row(outcome.task, outcome.result or {"failure": outcome.failure}, ceilings)
        found[places[outcome.task.layer, outcome.task.batch]] = row
        rows = [found[place] for place in sorted(found)]
        session.write_sometimes("layers", figures | {"rows": rows})
    missing = figures["failures"]
    figures |= {"complete": len(rows) == len(todo) and not missing, "planned": len(todo)}
    session.write("layers", figures | {"rows": rows, "seconds": time.monotonic() - started})
    told = [f"{network}: {why}" for network, why in missing.items()]
    told.append(f"{len(rows)} of {len(todo)} rows, {len(figures['dropped'])} with dropped candidates")
    return [*_totals(rows), *told]


def _verified(
    todo: Iterable[Measurement], workers: int, deadline: float
) -> Iterator[tuple[Measurement, dict[str, str]]]:
    """Each task with the verdicts on its candidates; one in which a candidate faults is done again without it."""
    found: dict[tuple[Layer, int], dict[str, str]] = defaultdict(dict)
    tasks = list(todo)
    while tasks:
        again: list[Measurement] = []
        reached: set[Measurement] = set()
        for outcome in run_tasks(
            "benchmarks.gpu.layers:verify", tasks, workers=workers, task_seconds=TASK_SECONDS, deadline=deadline
        ):
            task: Measurement = outcome.task
            reached.add(task)
            verdicts = found[task.layer, task.batch]
            verdicts |= outcome.result or {"all candidates": outcome.failure}
            faulted = tuple(name for name, verdict in verdicts.items() if verdict.startswith(FAULT))
            if len(faulted) > len(task.without):
                again.append(replace(task, without=faulted))
            else:
                yield task, verdicts
        for task in tasks:
            if task.without and task not in reached:  # there was no more time
                yield task, found[task.layer, task.batch]
        tasks = again


def _totals(rows: list[dict[str, Any]]) -> list[str]:
    """A line a network and batch: the layers' sum in milliseconds by each provider, where all were timed."""
    sums: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for row in rows:
        medians = {name: timing["median"] for name, timing in row.get("providers", {}).items()}
        if not {"library", "eager", "epilogue"} <= set(medians):
            continue
        medians["best of ours"] = medians[str(best_of_ours(row))]
        for network, count in row["networks"].items():
            for name in ("library", "eager", "epilogue", "best of ours"):
                sums[network, row["batch"]][name] += count * medians[name] / 1e3
    return [
        f"{network} batch {batch}: " + ", ".join(f"{name} {value:.3f} ms" for name, value in total.items())
        for (network, batch), total in sorted(sums.items())
    ]


def planned(session: Session) -> tuple[list[Measurement], dict[str, str]]:
    """Every distinct layer at every batch size, the most telling first; a few shrunken ones in a dry run.

    Also why networks are left out, by name.
    """
    networks = ("resnet20_32",) if session.dry_run else NETWORKS
    captured: dict[str, tuple[Layer, ...]] = {}
    failures: dict[str, str] = {}
    for outcome in run_tasks(
        "benchmarks.shapes:layers_of", networks, workers=session.workers, task_seconds=120, deadline=session.deadline
    ):
        if outcome.failure:
            failures[outcome.task] = f"it could not be captured: {outcome.failure}"
        else:
            captured[outcome.task] = outcome.result
    layers = merged({name: captured[name] for name in networks if name in captured})
    if session.dry_run:
        kinds = {(layer.operator, layer.weight[2:], layer.stride, layer.residual, layer.act): layer for layer in layers}
        return [Measurement(shrunken(layer), 2, True) for layer in kinds.values()], failures
    return [Measurement(layer, batch, False) for batch in BATCHES for layer in layers], failures


def shrunken(layer: Layer, most: int = 16) -> Layer:
    """The same layer with fewer channels and a map of 7×7 at most; its kernel must fit that map."""

    def fewer(size: int) -> int:
        return min(size, most)

    groups = fewer(layer.groups)
    weight = (fewer(layer.weight[0]), fewer(layer.weight[1]), *layer.weight[2:])
    if layer.operator == "linear":
        sample = (*map(fewer, layer.sample[:-1]), weight[1])
        return replace(layer, sample=sample, weight=weight, out_sample=(*sample[:-1], weight[0]))
    sample = (weight[1] * groups, *(min(size, 7) for size in layer.sample[1:]))
    axes = zip(sample[1:], weight[2:], layer.stride, layer.padding, layer.dilation, strict=True)
    out = (weight[0], *(conv_size(*axis) for axis in axes))
    return replace(layer, sample=sample, weight=weight, out_sample=out, groups=groups)


def operands(task: Measurement, seed: int) -> Operands:
    """Random operands of a task."""
    return operands_of(task.layer, task.batch, "cpu" if task.dry_run else "cuda", DTYPE, seed)


def candidates(layer: Layer, given: Operands, width: int) -> list[Candidate]:
    """Our kernels in ``width`` configurations, and the library with our epilogue."""
    arguments = given.arguments(layer, packed=True)
    every = candidates_for(Problem.of(layer.operator, arguments), environment_of(given.x.device), width)
    return [candidate for candidate in every if candidate.provider != "reference"]


def verify(task: Measurement) -> dict[str, str]:
    """What is wrong with each candidate, an empty string where nothing is; compiles them by the way.

    Compared with the reference in float64 on three samples; on all others that every element was written. Of what
    faults the device does not serve this process any more: those that come after have no verdict.
    """
    _nan_in_new_memory()
    layer, given = task.layer, operands(task, 0)
    picked = sorted({0, task.batch // 2, task.batch - 1})
    tensors = (given.x[picked], given.weight, given.bias)
    residual = None if given.residual is None else given.residual[picked].double()
    exact = REFERENCES[layer.operator](
        *(tensor.double() for tensor in tensors),
        residual,
        None if given.bound is None else given.bound.double(),
        *layer.options,
    )
    calls: dict[str, tuple[Callable[[], Tensor], float]] = {}
    for candidate in candidates(layer, given, 1 if task.dry_run else WIDTH):
        fused = candidate.provider == "triton"
        call: Callable[[], Tensor] = partial(candidate.call, *given.arguments(layer, packed=fused))
        calls[candidate.name] = call, tolerance_of(DTYPE) if fused else LIBRARY_TOLERANCE
    if compiles(task):
        calls["compile"] = lambda: compiled(layer, given)(given), LIBRARY_TOLERANCE
    verdicts: dict[str, str] = {}
    for name, (call, allowed) in calls.items():
        if name in task.without:
            continue
        try:
            verdicts[name] = _verdict(call, picked, exact, allowed)
        except Exception as problem:  # noqa: BLE001 - compilers and drivers raise anything, and the others are tried too
            if not device_survives():
                return verdicts | {name: FAULT + in_short(problem)}
            verdicts[name] = in_short(problem)
    return verdicts


def compiles(task: Measurement) -> bool:
    """Whether the provider "compile" is among those of a layer."""
    return not task.dry_run and task.batch == COMPILED[1] and COMPILED[0] in dict(task.layer.networks)


def _nan_in_new_memory() -> None:
    warnings.filterwarnings("ignore", message=".*deterministic", category=UserWarning)
    torch.use_deterministic_algorithms(True, warn_only=True)


@torch.no_grad()
def _verdict(call: Callable[[], Tensor], picked: list[int], exact: Tensor, allowed: float) -> str:
    y = call()
    if y.isnan().any():
        return "left elements unwritten, or NaN"
    largest = error(y[picked], exact)
    return "" if largest <= allowed else f"wrong by up to {largest:.2g}, allowed is {allowed:.2g}"


def timed(task: Measurement) -> dict[str, Any]:
    """The timing of every provider; of our kernels each configuration, and as "fused" the fastest."""
    best_of_cudnn()
    device = "cpu" if task.dry_run else "cuda"
    l2_bytes = 2**20 if task.dry_run else torch.cuda.get_device_properties(0).L2_cache_size
    wanted: L2 = "warm" if task.batch == 1 else "cold"
    footprint = roofline.bytes_moved(task.layer, task.batch, DTYPE.itemsize)
    number, l2 = (1, wanted) if task.dry_run else sets_for(footprint, l2_bytes, wanted)
    providers: dict[str, dict[str, Any]] = {}
    tiles: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with torch.no_grad():
        sets = [operands(task, seed) for seed in range(number)]
        ways = _ways(task, sets)
        for name in [name for name in ways if name.startswith("triton") or name == "compile"]:
            ways[name][0]()  # compiled or loaded here, which keeps nobody from preparing as well
        with alone():
            for name, calls in ways.items():
                try:
                    timing = asdict(time_calls(calls, device))
                except Exception as problem:  # noqa: BLE001 - one way that cannot be captured must not cost the others
                    failed[name] = in_short(problem)
                    if not device_survives():
                        break
                else:
                    (tiles if name.startswith("triton") else providers)[name] = timing
    if tiles:
        best = min(tiles, key=lambda name: float(tiles[name]["median"]))
        providers["fused"] = tiles[best] | {"configuration": best}
    if device == "cuda":
        del sets, ways
        torch.cuda.empty_cache()
    medians = {name: timing["median"] for name, timing in tiles.items()}
    found = {"providers": providers, "configurations": medians, "l2": l2, "operand_sets": number}
    return found | ({"failed": failed} if failed else {})


def _ways(task: Measurement, sets: list[Operands]) -> dict[str, list[Callable[[], Tensor]]]:
    """The calls of every provider, one a set of operands; those of our configurations by the candidates' names."""
    layer = task.layer
    ways: dict[str, list[Callable[[], Tensor]]] = {
        "library": [partial(library, layer, given) for given in sets],
        "eager": [partial(eager, layer, given) for given in sets],
    }
    if "compile" in task.verified:
        run = compiled(layer, sets[0])  # with its weights: one set of them, and inputs in turn
        ways["compile"] = [partial(run, given) for given in sets]
    for candidate in candidates(layer, sets[0], 1 if task.dry_run else WIDTH):
        if candidate.name in task.verified:
            name = {"library": "epilogue", "cudnn": "cudnn graph"}.get(candidate.provider, candidate.name)
            packed = candidate.provider == "triton"
            ways[name] = [partial(candidate.call, *given.arguments(layer, packed=packed)) for given in sets]
    return ways


def layer_of(row: dict[str, Any]) -> Layer:
    """The layer that a row of the results, as written, is about."""
    shape: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in row["shape"].items()
    }
    return Layer(**shape, networks=tuple(row["networks"].items()))


def _row(task: Measurement, found: dict[str, Any], ceilings: roofline.Ceilings) -> dict[str, Any]:
    layer, batch = task.layer, task.batch
    least = 1e6 * roofline.seconds(layer, batch, DTYPE.itemsize, ceilings)
    row: dict[str, Any] = {
        "layer": layer.name,
        "shape": {name: value for name, value in asdict(layer).items() if name != "networks"},
        "networks": dict(layer.networks),
        "batch": batch,
        "flops": roofline.flops(layer, batch),
        "bytes": roofline.bytes_moved(layer, batch, DTYPE.itemsize),
        "memory_bound": roofline.memory_bound(layer, batch, DTYPE.itemsize, ceilings),
        "roofline_microseconds": least,
    }
    medians = {name: timing["median"] for name, timing in found.get("providers", {}).items()}
    row["share_of_roofline"] = {name: least / median for name, median in medians.items()}
    if "fused" in medians:
        row["fused_faster_than"] = {name: medians[name] / medians["fused"] for name in medians if name != "fused"}
    return row | found
