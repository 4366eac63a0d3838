"""What sanitising costs at run time: each way of running a model in a process of its own, a burst of calls in turn.

    python -m benchmarks.runtime --part cpu        # ResNet-18 at 32×32, batches 1 and 16, neuron bounds: 14 minutes
    python -m benchmarks.runtime --part networks   # other networks, and what calling kernels from C++ gains: 15 minutes
    python -m benchmarks.runtime --part warmup     # what warming up takes, in a first process and in later ones
    python -m benchmarks.runtime --part monitor    # what monitor and inspect add to a call: 5 minutes
    python -m benchmarks.runtime --part detection  # the two backdoored traffic sign models, all 4,000 test images

Every way is compared with the eager graph it stands for before it is timed, in several processes one after the other:
where a process lies in memory moves all it times by several percent. ONNX Runtime's idle threads do not spin.
"sanitised auto" is a process that finds on disk what an earlier one chose.
Results go to ``results/runtime_PART.json``.
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unit_fast as uf
from benchmarks.models import available, make, make_bounds
from benchmarks.results_file import RESULTS, write_results
from tests import gtsrb
from unit_fast.bounds import Bounds
from unit_fast.export import OnnxRuntimeModel
from unit_fast.export.openvino_model import OpenVinoModel
from unit_fast.runtime import compiled
from unit_fast.timing import Call, Failure, interleaved

MODEL = "resnet18_32"
NETWORKS = ("resnet18_32", "resnet20_32", "vgg_32", "densenet_32", "mobilenet_v2_32", "vit_32")
BATCHES = (1, 16)
BASELINE = "unclamped torch.compile"
CACHES = ("UNIT_FAST_CACHE", "TORCHINDUCTOR_CACHE_DIR")
# Of the largest output; eight bits of activations give two digits.
AGREEMENT = {"sanitised int8": 0.3}
EXACTLY = 1e-3

_logger = logging.getLogger("benchmarks.runtime")


def _eager(model: nn.Module, x: Tensor, bounds: Bounds) -> Callable[[Tensor], Any]:  # noqa: ARG001 - all alike
    return model


def _compile(model: nn.Module, x: Tensor, bounds: Bounds) -> Callable[[Tensor], Any]:  # noqa: ARG001 - all alike
    import torch._inductor.config as inductor

    # Dynamo asks for it while it traces: as an option of torch.compile it comes too late, and no weight is frozen.
    inductor.freezing = True
    return torch.compile(model, dynamic=False)


def _exported(
    target: str, start: Callable[[Path, int], Callable[[Tensor], Any]], model: nn.Module, x: Tensor, bounds: Bounds
) -> Callable[[Tensor], Any]:
    # An infinite bound leaves no operator in the file.
    open_ = {name: torch.full_like(bound, torch.inf) for name, bound in bounds.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        unclamped = dataclasses.replace(bounds, tensors=open_)
        uf.export_onnx(model, unclamped, file, example_input=x, target=target, verify=False)
        return start(file, torch.get_num_threads())


def _onnxruntime(file: Path, threads: int) -> Callable[[Tensor], Any]:
    return OnnxRuntimeModel(file, threads=threads)


def _openvino(file: Path, threads: int) -> Callable[[Tensor], Any]:
    session = OpenVinoModel(file, threads=threads)
    return lambda batch: session.outputs([batch.numpy()])[0]


def _sanitised(backend: str, model: nn.Module, x: Tensor, bounds: Bounds) -> Callable[[Tensor], Any]:
    return uf.sanitize(model, bounds, x, backend=backend).warmup(BATCHES)  # type: ignore[arg-type]


def _called_from_python(model: nn.Module, x: Tensor, bounds: Bounds) -> Callable[[Tensor], Any]:
    compiled.IN_CPP = False  # in this process, which times nothing else
    return _sanitised("compile", model, x, bounds)


def _int8(model: nn.Module, x: Tensor, bounds: Bounds) -> Callable[[Tensor], Any]:
    samples = torch.randn(256, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    fast = uf.sanitize(model, bounds, x, dtype="int8", calibration_data=samples.split(64))
    return fast.warmup(BATCHES)


def _measuring(model: nn.Module, x: Tensor, bounds: Bounds) -> Callable[[Tensor], Any]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNIT_FAST_CACHE"] = folder  # in this process
        return _sanitised("auto", model, x, bounds)


def _monitored(model: nn.Module, x: Tensor, bounds: Bounds) -> Callable[[Tensor], Any]:
    fast = uf.sanitize(model, bounds, x, backend="compile").warmup(BATCHES, monitor=True)
    return lambda batch: fast.monitor(batch)[0]


def _inspected(model: nn.Module, x: Tensor, bounds: Bounds) -> Callable[[Tensor], Any]:
    fast = _able_to_tell(model, bounds, x).warmup(BATCHES, inspect=True)
    return lambda batch: fast.inspect(batch)[0]


def _able_to_tell(model: nn.Module, bounds: Bounds, x: Tensor) -> uf.SanitizedModel:
    """With readings of clean samples, without which ``inspect`` leaves out half of its work."""
    return uf.sanitize(model, bounds, x, backend="compile").fit_threshold([x])


PROVIDERS: dict[str, Callable[[nn.Module, Tensor, Bounds], Callable[[Tensor], Any]]] = {
    "unclamped eager": _eager,
    BASELINE: _compile,
    "unclamped ONNX Runtime": functools.partial(_exported, "onnxruntime", _onnxruntime),
    "unclamped OpenVINO": functools.partial(_exported, "openvino", _openvino),
    "sanitised eager": functools.partial(_sanitised, "eager"),
    "sanitised compile": functools.partial(_sanitised, "compile"),
    "sanitised onnxruntime": functools.partial(_sanitised, "onnxruntime"),
    "sanitised openvino": functools.partial(_sanitised, "openvino"),
    "sanitised auto": functools.partial(_sanitised, "auto"),
    "sanitised auto, first process": _measuring,
    "sanitised int8": _int8,
    "sanitised compile, monitor": _monitored,
    "sanitised compile, inspect": _inspected,
}


WAYS: dict[str, Callable[[nn.Module, Tensor, Bounds], Callable[[Tensor], Any]]] = {
    BASELINE: _compile,
    "sanitised compile, kernels called from Python": _called_from_python,
    "sanitised compile": PROVIDERS["sanitised compile"],
    "sanitised auto": PROVIDERS["sanitised auto"],
}
"""Those of the part "networks"."""


def build(provider: str, network: str = MODEL) -> Mapping[str, Call]:
    """The calls of one provider by batch size, checked against the eager graph; runs in the provider's process."""
    model, x = make(network)
    bounds = make_bounds(model, x, "neuron")
    reference = model if provider.startswith("unclamped") else uf.sanitize(model, bounds, x, backend="eager")
    run = (PROVIDERS | WAYS)[provider](model, x, bounds)
    calls: dict[str, Call] = {}
    for batch in BATCHES:
        rows = x[torch.arange(batch) % len(x)].contiguous()
        with torch.no_grad():
            expected, actual = reference(rows), run(rows)
        error = float((actual - expected).abs().max() / expected.abs().max())
        if not error <= AGREEMENT.get(provider, EXACTLY):
            raise AssertionError(f"{provider} is off by {error:.1e} of the largest output at batch {batch}")
        calls[str(batch)] = functools.partial(_without_gradients, run, rows)
    return calls


def _without_gradients(run: Callable[[Tensor], Any], rows: Tensor) -> object:
    with torch.no_grad():
        return run(rows)


def cpu(rounds: int, seconds: float, restarts: int) -> dict[str, Any]:
    """Milliseconds a call of every provider, and how many times as fast as the unclamped torch.compile it is."""
    rows = _timed(PROVIDERS, MODEL, rounds, seconds, restarts)
    return {"model": MODEL, "threads": torch.get_num_threads(), "processes": 1 + restarts, "rows": rows}


def networks(rounds: int, seconds: float, restarts: int) -> dict[str, Any]:
    """The same of the sanitised networks in torch.compile, kernels called from Python and from C++, and by auto."""
    rows = []
    for network in NETWORKS:
        if (reason := available(network)) is not None:
            _logger.warning("%s is left out: %s", network, reason)
            continue
        rows += [{"network": network} | row for row in _timed(WAYS, network, rounds, seconds, restarts)]
    return {"threads": torch.get_num_threads(), "processes": 1 + restarts, "rows": rows}


def _timed(
    providers: Collection[str], network: str, rounds: int, seconds: float, restarts: int
) -> list[dict[str, Any]]:
    builders = {provider: functools.partial(build, provider, network) for provider in providers}
    with _choices():
        earlier = interleaved({"auto": builders["sanitised auto"]}, rounds=0)["auto"]
        if isinstance(earlier, Failure):
            raise RuntimeError(f"auto cannot choose: {earlier.reason}")  # noqa: TRY004 - no type is wrong
        found = interleaved(
            builders,
            rounds=rounds,
            seconds=seconds,
            restarts=restarts,
            progress=lambda done, total: _logger.info("%s: %d of %d", network, done, total),
        )
    rows: list[dict[str, Any]] = []
    baseline = found[BASELINE]
    for provider, timings in found.items():
        if isinstance(timings, Failure):
            rows.append({"provider": provider, "failed": timings.reason})
            continue
        for batch, timing in timings.items():
            row = {"provider": provider, "batch": int(batch), "calls": timing.calls}
            row |= {f"{name}_ms": 1e3 * getattr(timing, name) for name in ("median", "p20", "p80")}
            if not isinstance(baseline, Failure):
                row["speed"] = baseline[batch].median / timing.median
            rows.append(row)
    return rows


@contextlib.contextmanager
def _choices() -> Iterator[None]:
    """Processes started in it share a folder for auto's choices and one for what Inductor compiles, empty at first."""
    before = {name: os.environ.get(name) for name in CACHES}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {name: str(Path(folder) / name.lower()) for name in CACHES}
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def warmup(rounds: int, seconds: float, restarts: int) -> dict[str, Any]:  # noqa: ARG001 - no calls are timed
    """Seconds to sanitise and warm up both batch sizes by auto, and the most memory of the process."""
    rows = []
    for network in NETWORKS:
        if (reason := available(network)) is not None:
            _logger.warning("%s is left out: %s", network, reason)
            continue
        found: dict[str, list[dict[str, float]]] = {"first": [], "next": []}
        for _ in range(1 + restarts):
            with _choices():
                for taken in found.values():
                    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                        taken.append(alone.submit(_warmed, network).result())
        for process, taken in found.items():
            row: dict[str, Any] = {"network": network, "process": process}
            for figure in ("seconds", "peak_mib"):
                values = sorted(one[figure] for one in taken)
                row |= {figure: statistics.median(values), f"{figure}_range": [values[0], values[-1]]}
            _logger.info("%s", row)
            rows.append(row)
    return {"threads": torch.get_num_threads(), "batches": BATCHES, "processes": 1 + restarts, "rows": rows}


def _warmed(network: str) -> dict[str, float]:
    import resource

    model, x = make(network)
    bounds = make_bounds(model, x, "neuron")
    start = time.perf_counter()
    uf.sanitize(model, bounds, x, backend="auto").warmup(BATCHES)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


WATCHED = ("alone", "monitor", "inspect")


def watched() -> Mapping[str, Call]:
    """A call that only gives the output, and those that also look for triggers, "WAY BATCH"; all in one process."""
    model, x = make(MODEL)
    fast = _able_to_tell(model, make_bounds(model, x, "neuron"), x).warmup(BATCHES, monitor=True, inspect=True)
    ways: tuple[Callable[[Tensor], Any], ...] = (fast, fast.monitor, fast.inspect)
    calls: dict[str, Call] = {}
    for batch in BATCHES:
        rows = x[torch.arange(batch) % len(x)].contiguous()
        for name, way in zip(WATCHED, ways, strict=True):
            calls[f"{name} {batch}"] = functools.partial(_without_gradients, way, rows)
    return calls


def monitor(rounds: int, seconds: float, restarts: int) -> dict[str, Any]:
    """What ``monitor`` and ``inspect`` add to a call: every process runs all, in turn."""
    found = interleaved({"sanitised compile": watched}, rounds=2 * rounds, seconds=seconds, restarts=restarts)
    timings = found["sanitised compile"]
    if isinstance(timings, Failure):
        raise RuntimeError(f"cannot be timed: {timings.reason}")  # noqa: TRY004 - no type is wrong
    rows = []
    for batch in BATCHES:
        alone = timings[f"alone {batch}"].median
        for name in WATCHED:
            timing = timings[f"{name} {batch}"]
            row: dict[str, Any] = {"call": name, "batch": batch, "calls": timing.calls}
            row |= {f"{part}_ms": 1e3 * getattr(timing, part) for part in ("median", "p20", "p80")}
            rows.append(row | {"over_alone": timing.median / alone})
    return {"model": MODEL, "threads": torch.get_num_threads(), "processes": 1 + restarts, "rows": rows}


def detection(rounds: int, seconds: float, restarts: int) -> dict[str, Any]:  # noqa: ARG001 - nothing is timed
    """How well each measure tells triggers, on the backdoored traffic sign models with the default recipe."""
    rows = []
    for name in gtsrb.UNDEFENDED:
        model = gtsrb.load_model(name)
        trigger, target = gtsrb.trigger_of(name)
        bounds = uf.calibrate(model, gtsrb.batches("calibration"))
        fast = uf.sanitize(model, bounds, gtsrb.load_images("test")[0][:2], backend="eager")
        report = uf.evaluate(fast, gtsrb.batches("test"), trigger=trigger, target=target)
        for found in report.detection:
            limit = fast.threshold(0.01, of=found.measure)
            row = {"model": name, "measure": found.measure, "auroc": found.auroc}
            row |= {"detected": found.detected.value, "false_alarms": found.false_alarms.value}
            row |= _at(limit, fast, found.measure, trigger, target)
            _logger.info("%s", row)
            rows.append(row)
    return {"rows": rows}


@torch.inference_mode()
def _at(limit: float, fast: uf.SanitizedModel, measure: str, trigger: Any, target: int) -> dict[str, float]:
    """The same at the threshold that calibration promises 1 % false alarms for."""
    clean, triggered = [], []
    for x, y in gtsrb.batches("test"):
        clean.append(fast.inspect(x)[1][measure])
        triggered.append(fast.inspect(trigger(x[y != target]))[1][measure])
    return {
        "threshold": limit,
        "detected_at_threshold": float((torch.cat(triggered) > limit).float().mean()),
        "false_alarms_at_threshold": float((torch.cat(clean) > limit).float().mean()),
    }


PARTS: dict[str, Callable[[int, float, int], dict[str, Any]]] = {
    "cpu": cpu,
    "networks": networks,
    "warmup": warmup,
    "monitor": monitor,
    "detection": detection,
}


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="all when omitted; repeatable")
    parser.add_argument("--rounds", type=int, default=4, help="bursts of each provider and batch, in every process")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a burst")
    parser.add_argument("--restarts", type=int, default=3, help="how often all processes are started anew")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder results are written to")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for part in options.part or PARTS:
        figures = PARTS[part](options.rounds, options.seconds, options.restarts)
        for row in figures["rows"]:
            _logger.info("%s", row)
        print(write_results(f"runtime_{part}", figures, options.output))


if __name__ == "__main__":
    main()
