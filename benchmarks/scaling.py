"""How time and memory grow, and what a bound costs by granularity, on the CPU.

    python -m benchmarks.scaling                # all parts
    python -m benchmarks.scaling --part batch   # one

Parts, each written to ``results/scaling_PART.json``. Sanitised models run through torch.compile with frozen weights,
and so do the unclamped ones beside them; every contender has a process of its own, in turn (``unit_fast.timing``).

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import make, make_bounds
from benchmarks.results_file import write_results
from tests import gtsrb
from unit_fast.bounds import Granularity
from unit_fast.calibration import calibrate
from unit_fast.capture import capture
from unit_fast.runtime import sanitize
from unit_fast.timing import Builder, Call, Failure, Timing, interleaved

_logger = logging.getLogger("benchmarks.scaling")

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIDES = (16, 24, 32, 48, 64)
WIDTHS = (8, 16, 32, 64, 128)
IMAGES = (250, 500, 1000, 2000, 4000)
GRANULARITIES: tuple[Granularity, ...] = ("tensor", "channel", "neuron")

Row = dict[str, Any]


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
    network: Callable[[], tuple[nn.Module, Tensor]],
    granularity: Granularity | None,
    batches: Iterable[int],
    threads: int | None = None,
) -> Mapping[str, Call]:
    """A compiled network, a case a batch size; without bounds where ``granularity`` is None."""
    if threads is not None:
        torch.set_num_threads(threads)
    model, example = network()
    if granularity is None:
        run: Any = torch.compile(capture(model, example), dynamic=False, options={"freezing": True})
    else:
        run = sanitize(model, make_bounds(model, example, granularity), example, backend="compile")

    def call(x: Tensor) -> object:
        with torch.no_grad():
            return run(x)

    sizes = {size: example[torch.arange(size) % len(example)] for size in batches}
    return {str(size): functools.partial(call, x) for size, x in sizes.items()}


def batch() -> list[Row]:
    """Time and memory by batch size."""
    return _measured(_pair(functools.partial(resnet, 32), BATCHES))


def resolution() -> list[Row]:
    """The same by the side of the images."""
    return [{"side": side} | row for side in SIDES for row in _measured(_pair(functools.partial(resnet, side), (4,)))]


def width() -> list[Row]:
    """The same by the number of channels."""
    return [{"width": w} | row for w in WIDTHS for row in _measured(_pair(functools.partial(tower, w), (4,)))]


def threads() -> list[Row]:
    """The same by the number of threads."""
    pairs = {count: _pair(functools.partial(resnet, 32), (1, 16), count) for count in (1, 2)}
    return [{"threads": count} | row for count, pair in pairs.items() for row in _measured(pair)]


def granularity() -> list[Row]:
    """What a bound costs."""
    network = functools.partial(resnet, 32)
    contenders = {
        kind or "none": functools.partial(contender, network, kind, (1, 16)) for kind in (None, *GRANULARITIES)
    }
    return _measured(contenders)


def images() -> list[Row]:
    """Seconds and peak memory of calibration, each in a process of its own."""
    rows = []
    for count in IMAGES:
        command = [sys.executable, "-m", "benchmarks.scaling", "--calibrate", str(count)]
        seconds, megabytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
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


def _pair(
    network: Callable[[], tuple[nn.Module, Tensor]], batches: tuple[int, ...], threads: int | None = None
) -> dict[str, Builder]:
    return {
        name: functools.partial(contender, network, kind, batches, threads)
        for name, kind in (("unclamped", None), ("sanitised", "neuron"))
    }


def _measured(contenders: Mapping[str, Builder]) -> list[Row]:
    found = interleaved(contenders, rounds=8, seconds=0.5)
    failed = {name: failure.reason for name, failure in found.items() if isinstance(failure, Failure)}
    if failed:
        raise RuntimeError(f"cannot be timed: {failed}")
    timings = {(name, case): t for name, cases in found.items() if isinstance(cases, dict) for case, t in cases.items()}
    return [{"provider": name, "batch": int(case)} | figures(timing) for (name, case), timing in timings.items()]


def figures(timing: Timing) -> dict[str, float]:
    """A timing as every result has it: milliseconds and MiB."""
    milliseconds = {f"{name}_ms": 1000 * getattr(timing, name) for name in ("median", "p20", "p80")}
    return milliseconds | {"calls": timing.calls, "peak_mib": timing.peak_mib}


PARTS: dict[str, Callable[[], list[Row]]] = {
    "batch": batch,
    "resolution": resolution,
    "width": width,
    "threads": threads,
    "granularity": granularity,
    "images": images,
}


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
    for part in options.part or PARTS:
        rows = PARTS[part]()
        _logger.info("%s: %d rows", part, len(rows))
        write_results(f"scaling_{part}", rows)


if __name__ == "__main__":
    main()
