"""The layers of networks on this machine's processor: what the clamp costs each, and how near each is to the roofline.

    python -m benchmarks.layers   # 5 minutes

Every distinct layer with a bound of ResNet-18 for images of 32×32 (batches 1 and 16) and of ResNet-50 (batch 1), in
float32 and channels_last, bounds as well, with its activation, residual and a bound per neuron:

unclamped eager     torch's kernels, one after the other, no clamp
eager               the same, and the clamp
unclamped compile   torch.compile's compiler with frozen weights, no clamp
sanitised           the same compiler on the graph with the clamp: what ``sanitize(backend="compile")`` compiles

Each provider has a process of its own, in turn (``unit_fast.timing``), and is compared with float64 before it is timed.
Operands stay in the cache where they fit, as in a network whose last layer has just written them; so the roofline is
that of copies of as many bytes (``benchmarks.roofline``). Written to ``results/layers_cpu.json``. For a GPU:
``python -m benchmarks.gpu --part layers``.
"""

import argparse
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import roofline
from benchmarks.layer_calls import Operands, compiled, eager, operands_of
from benchmarks.results_file import RESULTS, write_results
from benchmarks.shapes import Layer, layers_of, merged
from unit_fast.kernels.agreement import ROUNDED_TWICE, error, tolerance_of
from unit_fast.timing import Builder, Call, Failure, Timing, interleaved

_logger = logging.getLogger("benchmarks.layers")

DTYPE = torch.float32
WITHIN = ROUNDED_TWICE * tolerance_of(DTYPE)


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: of bursts of each provider, layer and batch size.
        seconds: of a burst.
        cases: networks of ``benchmarks.models``, and with how many samples.
        most: layers of each, at most.
    """

    rounds: int = 6
    seconds: float = 0.1
    cases: tuple[tuple[str, int], ...] = (("resnet18_32", 1), ("resnet18_32", 16), ("resnet50", 1))
    most: int = 100


@dataclass(frozen=True)
class Case:
    """A layer at a batch size."""

    layer: Layer
    batch: int

    def __str__(self) -> str:
        return f"{self.layer.name} batch {self.batch}"


def _eager(layer: Layer, given: Operands) -> Callable[[], Tensor]:
    return functools.partial(eager, layer, given)


def _compiled(layer: Layer, given: Operands) -> Callable[[], Tensor]:
    return functools.partial(compiled(layer, given), given)


PROVIDERS: dict[str, tuple[bool, Callable[[Layer, Operands], Callable[[], Tensor]]]] = {
    "unclamped eager": (False, _eager),
    "eager": (True, _eager),
    "unclamped compile": (False, _compiled),
    "sanitised": (True, _compiled),
}
"""Whether it clamps, and what makes the call."""


def build(provider: str, cases: tuple[Case, ...]) -> Mapping[str, Call]:
    """The provider's calls by case, each compared with float64; runs in the provider's process."""
    return {str(case): _verified(provider, case) for case in cases}


@torch.no_grad()
def _verified(provider: str, case: Case) -> Call:
    clamped, make = PROVIDERS[provider]
    given = operands_of(case.layer, case.batch, "cpu", DTYPE, seed=0)
    given = given if clamped else replace(given, bound=None)
    double: dict[str, Any] = {
        name: tensor if tensor is None else tensor.double() for name, tensor in vars(given).items()
    }
    exact = eager(case.layer, Operands(**double))
    call = make(case.layer, given)
    found = error(call(), exact)
    if not found <= WITHIN:
        raise AssertionError(f"{provider}: {case} is off by {found:.1e}, allowed is {WITHIN:.1e}")
    return functools.partial(_without_gradients, call)


def _without_gradients(call: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return call()


def planned(effort: Effort) -> tuple[Case, ...]:
    """Every distinct layer with a bound, network by network."""
    cases = []
    for network, batch in effort.cases:
        bounded = [layer for layer in merged({network: layers_of(network)}) if layer.bounded]
        cases += [Case(layer, batch) for layer in bounded[: effort.most]]
    return tuple(cases)


def measure(effort: Effort) -> dict[str, Any]:
    """The ceilings, and a row a layer and batch size."""
    cases = planned(effort)
    ceilings = roofline.cpu_ceilings()
    _logger.info("%d layers; %s", len(cases), ceilings)
    builders: dict[str, Builder] = {name: functools.partial(build, name, cases) for name in PROVIDERS}
    found = interleaved(
        builders,
        rounds=effort.rounds,
        seconds=effort.seconds,
        progress=lambda done, total: _logger.info("%d of %d", done, total),
    )
    ceilings = ceilings.or_better(roofline.cpu_ceilings())
    timings = {name: timed for name, timed in found.items() if not isinstance(timed, Failure)}
    return {
        "dtype": "fp32",
        "threads": torch.get_num_threads(),
        "ceilings": asdict(ceilings.memory) | {"copies": ceilings.copies},
        "failed": {name: failure.reason for name, failure in found.items() if isinstance(failure, Failure)},
        "rows": [row(case, {name: timed[str(case)] for name, timed in timings.items()}, ceilings) for case in cases],
    }


def row(case: Case, timings: Mapping[str, Timing], ceilings: roofline.CpuCeilings) -> dict[str, Any]:
    """As ``benchmarks.gpu.layers`` writes them: times in microseconds."""
    moved = roofline.bytes_moved(case.layer, case.batch, DTYPE.itemsize)
    limits = ceilings.at(moved)
    least = 1e6 * roofline.seconds(case.layer, case.batch, DTYPE.itemsize, limits)
    medians = {name: 1e6 * timing.median for name, timing in timings.items()}
    return {
        "layer": case.layer.name,
        "networks": dict(case.layer.networks),
        "batch": case.batch,
        "flops": roofline.flops(case.layer, case.batch),
        "bytes": moved,
        "memory_bound": roofline.memory_bound(case.layer, case.batch, DTYPE.itemsize, limits),
        "roofline_microseconds": least,
        "share_of_roofline": {name: least / median for name, median in medians.items()},
        "providers": {
            name: {key: 1e6 * getattr(timing, key) for key in ("median", "p20", "p80")} | {"calls": timing.calls}
            for name, timing in timings.items()
        },
    }


def run(effort: Effort, folder: Path = RESULTS) -> Path:
    """Measure and write ``layers_cpu.json``."""
    return write_results("layers_cpu", measure(effort), folder)


def main() -> None:
    """Measure everything."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    print(run(Effort()))


if __name__ == "__main__":
    main()
