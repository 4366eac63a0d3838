"""Does the file compute what the sanitised graph computes, where the bounds bind?

On ordinary inputs a lost clamp passes unnoticed, as clean activations stay below their bounds. So inputs are scaled by
10 and 100 too, every site's activation is an extra output, and none may exceed its bound by a single bit. NaN inputs
are left out: runtimes differ on Min and Clip of NaN.

Clamping cancels: what stays below a bound may be the small difference of large numbers, so at ×100 two correct float32
programs can differ by more than any fixed tolerance of the result (1e-5 of it in a small ResNet). Hence the reference
runs in float64 as well, and the file may differ by the tolerance or by ``ROUNDING`` times what float32 does to the
reference itself, whichever is larger, but never by more than ``CEILING``.
"""

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from unit_fast.errors import DataError, ParityError
from unit_fast.export.errors import SaturationWarning
from unit_fast.export.flat import FlatGraph, evaluate_sites
from unit_fast.export.forms.form import Clamp
from unit_fast.export.report import ParityCheck, ParityResult
from unit_fast.export.session import OnnxRuntimeModel, load_onnxruntime
from unit_fast.sites import copy_graph

BATCHES = (1, 2, 7)
SCALES = {"ordinary": 1.0, "×10": 10.0, "×100": 100.0}
# Largest difference relative to the largest magnitude in the tensor.
TOLERANCES = {"fp32": 1e-5}
ROUNDING = 4.0
# However badly float32 fares in the reference: a file that is off by more is not the model. 4.7e-5 was the most seen.
CEILING = 1e-3

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Case:
    """Inputs with what the reference makes of them; ``rounding`` is its own largest error against float64, by name."""

    name: str
    batch: int
    inputs: tuple[Tensor, ...]
    outputs: dict[str, Tensor]
    activations: dict[str, Tensor]
    rounding: dict[str, float]

    def __str__(self) -> str:
        return f"{self.name} inputs, batch {self.batch}"


def check_parity(
    graph: FlatGraph,
    plain: Path,
    exposed: Path,
    clamped: Mapping[str, str],
    clamps: Sequence[Clamp],
    precision: str,
) -> tuple[ParityResult, dict[str, bool]]:
    """Compare the exported files with the sanitised graph.

    Args:
        graph: the reference.
        plain: the file as it will be handed over.
        exposed: the same file with every clamped activation as an extra output.
        clamped: by site, the name of that output.
        clamps: what each site is clamped by.
        precision: key of ``TOLERANCES``.

    Returns:
        What was found, and by site whether an input drove the activation above its bound.

    Raises:
        ParityError: names site or output, batch and error.
        BackendUnavailableError: ONNX Runtime is missing.

    Warns:
        SaturationWarning: bounds that no input reached.
    """
    runtime = load_onnxruntime()
    cases, reached, skipped = _reference_cases(graph, clamped)
    upper = {clamp.site: torch.from_numpy(clamp.upper.copy()) for clamp in clamps if clamp.upper is not None}
    tolerance = TOLERANCES[precision]
    checks: list[ParityCheck] = []
    for optimized in (False, True):
        # One thread: the order of additions, and so the figures kept in the file, stay the same from run to run.
        model = _load(plain, optimized)
        watched = _load(exposed, optimized)
        for case in cases:
            where = f"{case}, graph optimisation {'on' if optimized else 'off'}"
            # Sites first, in the order in which they run: the first that differs is where the fault lies.
            errors = []
            results = _run(watched, case, where)
            for site, name in clamped.items():
                _check_bound(site, results[name], upper[site], where)
                expected = case.activations[site]
                errors.append(_compare(f"site {site}", results[name], expected, tolerance, case.rounding, where))
            for name, found in _run(model, case, where).items():
                expected = case.outputs[name]
                errors.append(_compare(f"output {name}", found, expected, tolerance, case.rounding, where))
            checks.append(
                ParityCheck(
                    inputs=case.name,
                    batch=case.batch,
                    optimized=optimized,
                    max_abs=max(error[0] for error in errors),
                    max_rel=max(error[1] for error in errors),
                    agreement=min(error[2] for error in errors),
                )
            )
    unreached = [site for site, hit in reached.items() if not hit]
    if unreached:
        shown = ", ".join(unreached[:5]) + (", …" if len(unreached) > 5 else "")
        warnings.warn(
            f"no verification input drove {len(unreached)} of {len(reached)} sites above their bounds ({shown}); their "
            "clamps were checked by structure only. Pass real samples as example_input to have them checked in action",
            SaturationWarning,
            stacklevel=4,
        )
    return ParityResult(f"onnxruntime {runtime.__version__}", tolerance, tuple(checks), skipped), reached


def _reference_cases(
    graph: FlatGraph, clamped: Mapping[str, str]
) -> tuple[list[_Case], dict[str, bool], tuple[str, ...]]:
    cases: list[_Case] = []
    skipped: list[str] = []
    exact = _double_precision(graph)
    reached = dict.fromkeys(clamped, False)
    for name, scale in SCALES.items():
        for batch in BATCHES:
            inputs = graph.batch(batch, scale, noise=scale != 1)
            outputs, before, after = evaluate_sites(graph, inputs)
            named = dict(zip(graph.output_names, outputs, strict=True))
            case = _Case(name, batch, inputs, named, after, _rounding(exact, inputs, named, after))
            overflown = [key for key, value in (case.outputs | after).items() if _overflows(value)]
            if overflown and scale == 1:
                raise ParityError(
                    f"the sanitised graph itself gives NaN or infinite values at {overflown[0]} on example_input; "
                    "pass an example like the data the model is served"
                )
            if overflown:
                skipped.append(str(case))
                continue
            cases.append(case)
            for site in clamped:
                reached[site] |= bool((before[site] > after[site]).any())
    return cases, reached, tuple(skipped)


def _double_precision(graph: FlatGraph) -> FlatGraph:
    module = copy_graph(graph.module)
    for node in module.graph.nodes:
        # Casts to float32 would meet float64 weights.
        node.args, node.kwargs = pytree.tree_map(
            lambda leaf: torch.float64 if leaf is torch.float32 else leaf, (node.args, dict(node.kwargs))
        )
    module.recompile()
    return replace(graph, module=copy.deepcopy(module).double())


def _rounding(
    exact: FlatGraph, inputs: tuple[Tensor, ...], outputs: Mapping[str, Tensor], activations: Mapping[str, Tensor]
) -> dict[str, float]:
    """Largest error of float32 in the reference, by "output <name>" and "site <name>"; empty where it is not known."""
    widened = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
    try:
        exact_outputs, _, exact_activations = evaluate_sites(exact, widened)
    except RuntimeError as error:
        # An operator without a float64 version, or a constant made in float32: then the tolerance alone counts.
        _logger.info("the reference does not run in float64: %s", error)
        return {}
    pairs = {
        f"output {name}": (value, found) for (name, value), found in zip(outputs.items(), exact_outputs, strict=True)
    }
    pairs |= {f"site {site}": (value, exact_activations[site]) for site, value in activations.items()}
    return {
        what: (value.double() - found).abs().max().item()
        for what, (value, found) in pairs.items()
        if value.is_floating_point() and value.numel()
    }


def _overflows(value: Tensor) -> bool:
    return value.is_floating_point() and not bool(torch.isfinite(value).all())


def _load(path: Path, optimized: bool) -> OnnxRuntimeModel:
    try:
        return OnnxRuntimeModel(path, threads=1, optimize=optimized)
    except DataError as error:
        raise ParityError(f"the exported file does not load: {error}") from error


def _run(model: OnnxRuntimeModel, case: _Case, where: str) -> dict[str, Tensor]:
    feed = {name: tensor.contiguous().numpy() for name, tensor in zip(model.input_names, case.inputs, strict=True)}
    try:
        return model.run(feed)
    except DataError as error:
        raise ParityError(f"{where}: the exported file does not run: {error}") from error


def _check_bound(site: str, activation: Tensor, upper: Tensor, where: str) -> None:
    if bool(torch.isnan(activation).any()):
        raise ParityError(f"site {site}, {where}: the file gives NaN, the sanitised graph does not")
    excess = (activation.double() - upper.double()).max().item() if activation.numel() else 0.0
    if excess > 0:
        raise ParityError(
            f"site {site}, {where}: the file's activation exceeds its bound by {excess:.3g}; expected none"
        )


def _compare(
    what: str, found: Tensor, expected: Tensor, tolerance: float, rounding: Mapping[str, float], where: str
) -> tuple[float, float, float]:
    """Absolute error, relative error and argmax agreement; raises when they are not within the limit."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ParityError(
            f"{what}, {where}: the file gives {found.dtype} of shape {tuple(found.shape)}, expected {expected.dtype} "
            f"of shape {tuple(expected.shape)}"
        )
    if not expected.is_floating_point():
        wrong = (found != expected).double().mean().item() if expected.numel() else 0.0
        if wrong:
            raise ParityError(f"{what}, {where}: {wrong:.2%} of the values differ; expected none")
        return 0.0, 0.0, 1.0
    if not expected.numel():
        return 0.0, 0.0, 1.0
    found, expected = found.double(), expected.double()
    scale = expected.abs().max().item()
    absolute = (found - expected).abs().max().item()
    relative = absolute / scale if scale else absolute
    limit = max(tolerance * scale, min(ROUNDING * rounding.get(what, 0.0), CEILING * scale))
    if not absolute <= limit:
        raise ParityError(
            f"{what}, {where}: differs by {absolute:.3g}, {relative:.3g} of its largest magnitude {scale:.3g}; "
            f"expected at most {limit:.3g}. No file was written"
        )
    return absolute, relative, _agreement(what, found, expected, limit, where)


def _agreement(what: str, found: Tensor, expected: Tensor, margin: float, where: str) -> float:
    """Share of samples whose largest class is the same; ties within ``margin`` may fall either way."""
    if not what.startswith("output") or expected.ndim < 2 or expected.shape[1] < 2:
        return 1.0
    best = expected.topk(2, dim=1).values
    decided = best.select(1, 0) - best.select(1, 1) > margin
    same = found.argmax(1) == expected.argmax(1)
    if bool((decided & ~same).any()):
        raise ParityError(
            f"{what}, {where}: {int((decided & ~same).sum())} of {same.numel()} predictions differ; expected none. "
            "No file was written"
        )
    return same.double().mean().item()
