"""What the sanitised graph gives on the inputs of the verification, and how sure float arithmetic can be of it.

Clamping cancels: what stays below a bound may be the small difference of large numbers, so at ×100 two correct float32
programs can differ by more than any fixed tolerance of the result (1e-5 of it in a small ResNet). Hence the reference
runs in float64 as well, and so does what the file was made of, where that is another graph: the error that float
arithmetic makes in either is what the file may be wrong by, up to a factor and a ceiling that ``parity.py`` sets. In
float32 the reference runs with oneDNN and without, which sum in different orders: in EfficientNet-Lite0 one errs up to
five times as much as the other. Few values may all be lucky in both, so that no less counts than one rounding of the
largest value that arrives at a clamp: what leaves it below its bound is a sum of numbers as large.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unit_fast.capture import ONE_AT_A_TIME
from unit_fast.errors import ParityError
from unit_fast.export.flat import FlatGraph, evaluate_sites, in_dtype

BATCHES = (1, 2, 7)
SCALES = {"ordinary": 1.0, "×10": 10.0, "×100": 100.0}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """The graph that the file was made of.

    Attributes:
        graph: takes and returns what the reference does.
        scales: by site, what its activation is larger by in the reference; sites that are not there have it alike.
    """

    graph: FlatGraph
    scales: Mapping[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Inputs with what the reference makes of them.

    Attributes:
        rounding: the largest error of float arithmetic, by name.
        compared: whether values say something; bounds hold in any case.
    """

    name: str
    batch: int
    inputs: tuple[Tensor, ...]
    outputs: dict[str, Tensor]
    activations: dict[str, Tensor]
    rounding: dict[str, float]
    compared: bool = True

    @property
    def enlarged(self) -> bool:
        """Whether the inputs are larger than the example."""
        return SCALES[self.name] != 1

    def __str__(self) -> str:
        return f"{self.name} inputs, batch {self.batch}"


@dataclass(frozen=True)
class Cases:
    """Every case; by site whether an input drove its activation above its bound; and whose values are not compared."""

    cases: tuple[Case, ...]
    reached: dict[str, bool]
    skipped: tuple[str, ...]


def reference_cases(
    graph: FlatGraph, sites: Iterable[str], written: Written | None, cancelling: float = math.inf
) -> Cases:
    """Run the reference on ordinary and on larger inputs.

    Args:
        graph: the reference.
        sites: those that the file clamps.
        written: what the file was made of, where that is not ``graph``.
        cancelling: how many times more may arrive at a clamp than leaves it; beyond, values say nothing but of bounds.

    Raises:
        ParityError: the reference itself gives NaN or infinite values on the example.
    """
    cases: list[Case] = []
    skipped: list[str] = []
    exact = in_dtype(graph, torch.float64)
    reached = dict.fromkeys(sites, False)
    for name, scale in SCALES.items():
        for batch in BATCHES:
            inputs = graph.batch(batch, scale, noise=scale != 1)
            outputs, before, after = evaluate_sites(graph, inputs)
            named = dict(zip(graph.output_names, outputs, strict=True))
            overflown = [key for key, value in (named | after).items() if _overflows(value)]
            if written is not None and not overflown and scale != 1:
                # float16 ends at 65504; at ×1 the comparison itself shall say so.
                made, _, clamped = evaluate_sites(written.graph, inputs)
                overflown = ["the written graph" for value in (*made, *clamped.values()) if _overflows(value)]
            rounding = _rounding(graph, exact, inputs, named, before, after, written)
            case = Case(name, batch, inputs, named, after, rounding)
            if overflown and scale == 1:
                raise ParityError(
                    f"the sanitised graph itself gives NaN or infinite values at {overflown[0]} on example_input; "
                    "pass an example like the data the model is served"
                )
            if overflown:
                skipped.append(str(case))
                continue
            if scale != 1 and any(_cancels(before[site], after[site], cancelling) for site in reached):
                skipped.append(str(case))
                case = replace(case, compared=False)
            cases.append(case)
            for site in reached:
                reached[site] |= bool((before[site] > after[site]).any())
    return Cases(_sharing_rounding(cases), reached, tuple(skipped))


def _sharing_rounding(cases: list[Case]) -> tuple[Case, ...]:
    """The error seen in a batch of one is one of few values: batches of the same scale share the largest."""
    shared: dict[tuple[str, str], float] = {}
    for case in cases:
        for what, error in case.rounding.items():
            key = (case.name, what)
            shared[key] = max(error, shared.get(key, 0.0))
    return tuple(replace(case, rounding={what: shared[case.name, what] for what in case.rounding}) for case in cases)


def widened(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs for a graph in float64."""
    return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)


def _rounding(
    graph: FlatGraph,
    exact: FlatGraph,
    inputs: tuple[Tensor, ...],
    outputs: Mapping[str, Tensor],
    arriving: Mapping[str, Tensor],
    activations: Mapping[str, Tensor],
    written: Written | None,
) -> dict[str, float]:
    """Largest error of float arithmetic, by "output <name>" and "site <name>"; empty where it is not known."""
    try:
        exact_outputs, _, exact_activations = evaluate_sites(exact, widened(inputs))
    except RuntimeError as error:
        # An operator without a float64 version, or a constant made in float32: then the tolerance alone counts.
        _logger.info("the reference does not run in float64: %s", error)
        return {}
    truth = _named(outputs, exact_outputs, exact_activations)
    with _without_onednn():
        again, _, reactivated = evaluate_sites(graph, inputs)
    found = [
        _named(outputs, outputs.values(), activations),
        _named(outputs, again, reactivated),
    ]
    if written is not None:
        made, _, clamped = evaluate_sites(written.graph, inputs)
        rescaled = {site: value * written.scales.get(site, 1.0) for site, value in clamped.items()}
        found.append(_named(outputs, made, rescaled))
    least = {
        f"site {site}": torch.finfo(value.dtype).eps / 2 * largest(value)
        for site, value in arriving.items()
        if value.is_floating_point() and value.numel()
    }
    return {
        what: max(least.get(what, 0.0), *(largest(values[what] - value) for values in found))
        for what, value in truth.items()
        if value.is_floating_point() and value.numel()
    }


def _set_onednn(enabled: bool) -> None:
    flags: Callable[..., object] = torch.backends.mkldnn.set_flags
    flags(_enabled=enabled, _fp32_precision=None)  # None leaves the rest as it is


@contextmanager
def _without_onednn() -> Iterator[None]:
    """The switch is the process's: what other threads compute meanwhile is right too, and slower.

    No sanitised graph is compiled meanwhile: Inductor would leave oneDNN out of it for good.
    """
    with ONE_AT_A_TIME:
        before = bool(torch.backends.mkldnn.enabled)
        try:
            _set_onednn(False)
            yield
        finally:
            _set_onednn(before)


def _named(names: Iterable[str], outputs: Iterable[Tensor], activations: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {f"output {name}": value for name, value in zip(names, outputs, strict=True)}
    return found | {f"site {site}": value for site, value in activations.items()}


def _cancels(before: Tensor, after: Tensor, limit: float) -> bool:
    """Whether a clamp that leaves something gets more than ``limit`` times as much."""
    if not after.numel():
        return False
    most = largest(after)
    return most > 0 and largest(before) > limit * most


def _overflows(value: Tensor) -> bool:
    return value.is_floating_point() and value.numel() > 0 and not math.isfinite(largest(value))


def largest(values: Tensor) -> float:
    """The largest magnitude; NaN where there is one. One pass: activations are large, and compared some fifty times."""
    least, most = values.aminmax()
    return max(abs(least.item()), abs(most.item()))
