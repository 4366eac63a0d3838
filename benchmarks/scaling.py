"""How time and memory grow, and what a bound costs by granularity, on the CPU.

    python -m benchmarks.scaling                # all parts
    python -m benchmarks.scaling --part batch   # one

Parts, each written to ``results/scaling_PART.json``. The network with bounds runs as ``sanitize(backend="compile")``
runs it, and the one without goes the same way: captured, then straight to torch.compile's compiler with frozen weights.
So what lies between the two is the clamp, and not torch.compile's front end, which takes 200 µs and more a call. Every
contender has a process of its own, in turn (``unit_fast.timing``), and is compared with its eager graph before it is
timed. Memory is the peak of that process, with its imports, compilation and comparison, for one batch size alone.

batch        ResNet-18 for images of 32×32, bounds per neuron, 1 to 64 samples a call
resolution   the same, images of 16×16 to 64×64, 4 samples
width        six convolutions of 8 to 128 channels on maps of 16×16, 4 samples
threads      ResNet-18, 1 and 2 threads, 1 and 16 samples
granularity  ResNet-18, no bounds and bounds per tensor, channel and neuron, 1 and 16 samples
images       calibration by the number of clean images: seconds and peak memory
"""

import argparse
import functools
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import make
from benchmarks.results_file import RESULTS, write_results
from tests import gtsrb
from unit_fast.bounds import Bounds, Granularity, bound_shape
from unit_fast.calibration import calibrate
from unit_fast.capture import capture
from unit_fast.runtime.calls import Call as Arguments
from unit_fast.runtime.compiled import Compiled
from unit_fast.runtime.program import Program
from unit_fast.sites import find_sites, insert_bounds
from unit_fast.timing import Builder, Call, Failure, Timing, interleaved

_logger = logging.getLogger("benchmarks.scaling")

GRANULARITIES: tuple[Granularity, ...] = ("tensor", "channel", "neuron")

Row = dict[str, Any]
Network = Callable[[], tuple[nn.Module, Tensor]]


@dataclass(frozen=True)
class Effort:
    """How much is measured; all parts together take twelve minutes on two cores.

    Attributes:
        rounds: of bursts of each contender and case, in every process.
        seconds: of a burst.
        restarts: of every process of the part "granularity", whose differences are small.
        batches, sides, widths, threads, images: the values of the parts named so.
        pair: the batch sizes of the parts "threads" and "granularity".
    """

    rounds: int = 6
    seconds: float = 0.5
    restarts: int = 1
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    sides: tuple[int, ...] = (16, 32, 64)
    widths: tuple[int, ...] = (8, 32, 128)
    threads: tuple[int, ...] = (1, 2)
    images: tuple[int, ...] = (250, 500, 1000, 2000, 4000)
    pair: tuple[int, ...] = (1, 16)


def resnet(side: int) -> tuple[nn.Module, Tensor]:
    """ResNet-18 for images of 32×32, which takes any size, and images of ``side``."""
    model, _ = make("resnet18_32")
    return model, torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))


def tower(width: int) -> tuple[nn.Module, Tensor]:
    """Six convolutions of ``width`` channels, each with a ReLU, and maps of 16×16."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers).eval(), torch.randn(4, width, 16, 16)


def contender(
    network: Network, granularity: Granularity | None, batches: Sequence[int], threads: int | None = None
) -> Mapping[str, Call]:
    """A compiled network, a case a batch size; without bounds where ``granularity`` is None."""
    if threads is not None:
        torch.set_num_threads(threads)
    model, example = network()
    graph = capture(model, example)
    bounds = Bounds({}, (), "tensor", graph.meta["fingerprint"])
    if granularity is not None:
        sites = find_sites(graph)
        # Not fitted: that takes memory too. Where activations are about 1, 1 binds.
        tensors = {site.name: torch.ones(bound_shape(site, granularity)) for site in sites}
        bounds = Bounds(tensors, sites, granularity, graph.meta["fingerprint"])
        graph = insert_bounds(graph, dict(bounds.items()))
    run = Compiled(Program(graph, bounds, Arguments.from_example(example)))
    run.warmup(batches)
    sizes = {size: example[torch.arange(size) % len(example)] for size in batches}
    return {str(size): functools.partial(run, x) for size, x in sizes.items()}


def batch(effort: Effort) -> list[Row]:
    """Time and memory by batch size."""
    return [row for size in effort.batches for row in _measured(_pair(functools.partial(resnet, 32), size), effort)]


def resolution(effort: Effort) -> list[Row]:
    """The same by the side of the images."""
    return [
        {"side": side} | row
        for side in effort.sides
        for row in _measured(_pair(functools.partial(resnet, side), 4), effort)
    ]


def width(effort: Effort) -> list[Row]:
    """The same by the number of channels."""
    return [
        {"width": channels} | row
        for channels in effort.widths
        for row in _measured(_pair(functools.partial(tower, channels), 4), effort)
    ]


def threads(effort: Effort) -> list[Row]:
    """The same by the number of threads."""
    return [
        {"threads": count} | row
        for count in effort.threads
        for size in effort.pair
        for row in _measured(_pair(functools.partial(resnet, 32), size, count), effort)
    ]


def granularity(effort: Effort) -> list[Row]:
    """What a bound costs."""
    network = functools.partial(resnet, 32)
    contenders: dict[str, Builder] = {
        kind or "none": functools.partial(contender, network, kind, effort.pair) for kind in (None, *GRANULARITIES)
    }
    return _measured(contenders, effort, effort.restarts)


def images(effort: Effort) -> list[Row]:
    """Seconds and peak memory of calibration, each in a process of its own."""
    rows = []
    for count in effort.images:
        command = [sys.executable, "-m", "benchmarks.scaling", "--calibrate", str(count)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds, megabytes = answer.split()
        rows.append({"images": count, "seconds": float(seconds), "peak_mib": float(megabytes)})
        _logger.info("images: %s", rows[-1])
    return rows


def _calibrate(count: int) -> None:
    """Calibrate a VGG on ``count`` random images; prints seconds and the peak memory of the process in MiB."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for start in range(0, count, 250):
            x = torch.rand(250, 3, 32, 32, generator=generator)
            yield x, torch.arange(start, start + 250) % gtsrb.CLASSES

    model, _ = make("vgg_32")
    start = time.perf_counter()
    calibrate(model, batches())
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{seconds} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}")


def _pair(network: Network, size: int, threads: int | None = None) -> dict[str, Builder]:
    kinds: dict[str, Granularity | None] = {"unclamped": None, "sanitised": "neuron"}
    return {name: functools.partial(contender, network, kind, (size,), threads) for name, kind in kinds.items()}


def _measured(contenders: Mapping[str, Builder], effort: Effort, restarts: int = 0) -> list[Row]:
    found = interleaved(contenders, rounds=effort.rounds, seconds=effort.seconds, restarts=restarts)
    failed = {name: failure.reason for name, failure in found.items() if isinstance(failure, Failure)}
    if failed:
        raise RuntimeError(f"cannot be timed: {failed}")
    timings = {(name, case): t for name, cases in found.items() if isinstance(cases, dict) for case, t in cases.items()}
    return [{"provider": name, "batch": int(case)} | figures(timing) for (name, case), timing in timings.items()]


def figures(timing: Timing) -> dict[str, float]:
    """A timing as every result has it: milliseconds and MiB."""
    milliseconds = {f"{name}_ms": 1000 * getattr(timing, name) for name in ("median", "p20", "p80")}
    return milliseconds | {"calls": timing.calls, "peak_mib": timing.peak_mib}


PARTS: dict[str, Callable[[Effort], list[Row]]] = {
    "batch": batch,
    "resolution": resolution,
    "width": width,
    "threads": threads,
    "granularity": granularity,
    "images": images,
}


def run(parts: Iterable[str], effort: Effort, folder: Path = RESULTS) -> None:
    """Measure and write ``scaling_PART.json``."""
    for part in parts:
        started = time.perf_counter()
        rows = PARTS[part](effort)
        write_results(f"scaling_{part}", rows, folder)
        _logger.info("%s: %d rows in %.0f s", part, len(rows), time.perf_counter() - started)


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="all when omitted; repeatable")
    parser.add_argument("--calibrate", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.calibrate:
        _calibrate(options.calibrate)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run(options.part or PARTS, Effort())


if __name__ == "__main__":
    main()
