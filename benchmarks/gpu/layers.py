"""Part "layers": the layers of networks in fp16, by several providers, each verified before it is timed.

library   cuDNN's convolution or cuBLAS's product with its bias, and nothing else
eager     the same, then residual, activation and clamp as torch's own kernels
compile   torch.compile's compiler, frozen weights: the library and one kernel for the rest; for ``COMPILED`` only
epilogue  the library without bias, then our pointwise kernel for all the rest
cudnn graph  the whole as one graph of cuDNN's, where that is installed and can
fused     our kernel for the whole, the fastest of the configurations that the shape leaves

At batch 1 operands stay in L2 ("warm"), as in a network whose last layer has just written them; larger batches are
timed with L2 "cold" (see ``timing``). All cores verify and so compile first, nothing else runs while times are taken.
"""

import time
import warnings
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks import roofline
from benchmarks.gpu.environment import ceilings_of
from benchmarks.gpu.pool import run_tasks
from benchmarks.gpu.session import Session
from benchmarks.gpu.timing import L2, sets_for, time_calls
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
LIBRARY_TOLERANCE = ROUNDED_TWICE * tolerance_of(DTYPE)


@dataclass(frozen=True)
class Measurement:
    """One layer at one batch size."""

    layer: Layer
    batch: int
    dry_run: bool
    verified: tuple[str, ...] = ()  # names of candidates


def measure(session: Session) -> list[str]:
    """Capture the networks, verify every candidate, time what is right; rows are written as they come."""
    started, ends = time.monotonic(), session.deadline
    ceilings = ceilings_of(session, DTYPE_NAME)
    figures: dict[str, Any] = {"complete": False, "dtype": DTYPE_NAME, "ceilings": asdict(ceilings), "dropped": []}
    todo = planned(session)
    verify_until = time.monotonic() + VERIFYING_SHARE * session.remaining
    verified: list[Measurement] = []
    for outcome in run_tasks(
        "benchmarks.gpu.layers:verify", todo, workers=session.workers, task_seconds=TASK_SECONDS, deadline=verify_until
    ):
        task: Measurement = outcome.task
        verdicts: dict[str, str] = outcome.result or {"all candidates": outcome.failure}
        good = tuple(name for name, verdict in verdicts.items() if not verdict)
        bad = {name: verdict for name, verdict in verdicts.items() if verdict}
        if bad:
            figures["dropped"].append({"layer": task.layer.name, "batch": task.batch, "candidates": bad})
        verified.append(Measurement(task.layer, task.batch, task.dry_run, good))
    figures["verifying_seconds"] = time.monotonic() - started
    session.write("layers", figures)
    rows: list[dict[str, Any]] = []
    places = {(task.layer, task.batch): place for place, task in enumerate(todo)}
    verified.sort(key=lambda task: places[task.layer, task.batch])
    for outcome in run_tasks(
        "benchmarks.gpu.layers:timed", verified, workers=1, task_seconds=TASK_SECONDS, deadline=ends
    ):
        rows.append(_row(outcome.task, outcome.result or {"failure": outcome.failure}, ceilings))
        session.write_sometimes("layers", figures | {"rows": rows})
    figures |= {"complete": len(rows) == len(todo), "planned": len(todo), "seconds": time.monotonic() - started}
    session.write("layers", figures | {"rows": rows})
    return [*_totals(rows), f"{len(rows)} of {len(todo)} rows, {len(figures['dropped'])} with dropped candidates"]


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


def planned(session: Session) -> list[Measurement]:
    """Every distinct layer at every batch size, the most telling first; a few shrunken ones in a dry run."""
    networks = ("resnet20_32",) if session.dry_run else NETWORKS
    captured: dict[str, tuple[Layer, ...]] = {}
    for outcome in run_tasks(
        "benchmarks.shapes:layers_of", networks, workers=session.workers, task_seconds=120, deadline=session.deadline
    ):
        if outcome.failure:
            raise RuntimeError(f"{outcome.task} could not be captured: {outcome.failure}")
        captured[outcome.task] = outcome.result
    layers = merged({name: captured[name] for name in networks if name in captured})
    if session.dry_run:
        kinds = {(layer.operator, layer.weight[2:], layer.stride, layer.residual, layer.act): layer for layer in layers}
        return [Measurement(shrunken(layer), 2, True) for layer in kinds.values()]
    return [Measurement(layer, batch, False) for batch in BATCHES for layer in layers]


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

    Compared with the reference in float32 on three samples; on all others that every element was written.
    """
    _nan_in_new_memory()
    layer, given = task.layer, operands(task, 0)
    picked = sorted({0, task.batch // 2, task.batch - 1})
    tensors = (given.x[picked], given.weight, given.bias)
    residual = None if given.residual is None else given.residual[picked].float()
    exact = REFERENCES[layer.operator](
        *(tensor.float() for tensor in tensors),
        residual,
        None if given.bound is None else given.bound.float(),
        *layer.options,
    )
    verdicts = {
        candidate.name: _verdict(candidate, layer, given, picked, exact)
        for candidate in candidates(layer, given, 1 if task.dry_run else WIDTH)
    }
    if compiles(task):
        verdicts["compile"] = _verdict_on_compiled(layer, given, picked, exact)
    return verdicts


def compiles(task: Measurement) -> bool:
    """Whether the provider "compile" is among those of a layer."""
    return not task.dry_run and task.batch == COMPILED[1] and COMPILED[0] in dict(task.layer.networks)


def _nan_in_new_memory() -> None:
    warnings.filterwarnings("ignore", message=".*deterministic", category=UserWarning)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # of the reference
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def _verdict(candidate: Candidate, layer: Layer, given: Operands, picked: list[int], exact: Tensor) -> str:
    fused = candidate.provider == "triton"
    try:
        y = candidate.call(*given.arguments(layer, packed=fused))
        if y.isnan().any():
            return "left elements unwritten, or NaN"
        largest = error(y[picked], exact)
    except (TypeError, ValueError, triton.TritonError, torch.OutOfMemoryError) as problem:
        return f"{type(problem).__name__}: {problem}"[:300]
    except RuntimeError as fault:  # of the device: this process is of no more use
        raise RuntimeError(f"{candidate.name}: {fault}") from fault
    return _compared(largest, tolerance_of(DTYPE) if fused else LIBRARY_TOLERANCE)


@torch.no_grad()
def _verdict_on_compiled(layer: Layer, given: Operands, picked: list[int], exact: Tensor) -> str:
    try:
        y = compiled(layer, given)(given)
    except Exception as problem:  # noqa: BLE001 - whatever a compiler throws is no reason to lose the others
        return f"{type(problem).__name__}: {problem}"[:300]
    return _compared(error(y[picked], exact), LIBRARY_TOLERANCE)


def _compared(largest: float, allowed: float) -> str:
    return "" if largest <= allowed else f"wrong by up to {largest:.2g}, allowed is {allowed:.2g}"


def timed(task: Measurement) -> dict[str, Any]:
    """The timing of every provider; of our kernels each configuration, and as "fused" the fastest."""
    torch.backends.cudnn.benchmark = True  # the library at its best
    device = "cpu" if task.dry_run else "cuda"
    l2_bytes = 2**20 if task.dry_run else torch.cuda.get_device_properties(0).L2_cache_size
    wanted: L2 = "warm" if task.batch == 1 else "cold"
    footprint = roofline.bytes_moved(task.layer, task.batch, DTYPE.itemsize)
    number, l2 = (1, wanted) if task.dry_run else sets_for(footprint, l2_bytes, wanted)
    with torch.no_grad():
        sets = [operands(task, seed) for seed in range(number)]
        providers: dict[str, Any] = {
            "library": asdict(time_calls([partial(library, task.layer, given) for given in sets], device)),
            "eager": asdict(time_calls([partial(eager, task.layer, given) for given in sets], device)),
        }
        if "compile" in task.verified:
            run = compiled(task.layer, sets[0])  # with its weights: one set of them, and inputs in turn
            providers["compile"] = asdict(time_calls([partial(run, given) for given in sets], device))
        tiles: dict[str, dict[str, Any]] = {}
        for candidate in candidates(task.layer, sets[0], 1 if task.dry_run else WIDTH):
            if candidate.name not in task.verified:
                continue
            fused = candidate.provider == "triton"
            calls = [partial(candidate.call, *given.arguments(task.layer, packed=fused)) for given in sets]
            timing = asdict(time_calls(calls, device))
            if fused:
                tiles[candidate.name] = timing
            else:
                providers["cudnn graph" if candidate.provider == "cudnn" else "epilogue"] = timing
        if tiles:
            best = min(tiles, key=lambda name: float(tiles[name]["median"]))
            providers["fused"] = tiles[best] | {"configuration": best}
    if device == "cuda":
        del sets
        torch.cuda.empty_cache()
    medians = {name: timing["median"] for name, timing in tiles.items()}
    return {"providers": providers, "configurations": medians, "l2": l2, "operand_sets": number}


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
