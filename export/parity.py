"""Does the file compute what the sanitised graph computes, where the bounds bind?

On ordinary inputs a lost clamp passes unnoticed, as clean activations stay below their bounds. So inputs are scaled by
10 and 100 too, every site's activation is an extra output, and none may exceed its bound by a single bit. NaN inputs
are left out: runtimes differ on Min and Clip of NaN.

The file may differ by the tolerance or by ``ROUNDING`` times what float arithmetic does in torch (``reference.py``),
whichever is larger, but never by more than ``CEILINGS``: outputs by their largest value, activations by their root mean
square, since one of a hundred thousand may cancel almost to nothing and be off by much of itself.
"""

import logging
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unit_fast.errors import BackendUnavailableError, DataError, ParityError
from unit_fast.export.crash import require_survival
from unit_fast.export.errors import SaturationWarning
from unit_fast.export.flat import FlatGraph
from unit_fast.export.forms.form import Clamp
from unit_fast.export.openvino_model import OpenVinoModel
from unit_fast.export.reference import Case, Written, largest, reference_cases
from unit_fast.export.report import ParityCheck, ParityResult
from unit_fast.export.runtimes import load_runtime
from unit_fast.export.session import OnnxRuntimeModel

# Largest difference relative to the largest magnitude in the tensor.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2}
ROUNDING = 4.0
# However badly floats fare in torch: a file that is off by more is not the model. Relative to the largest magnitude of
# an output, and to the root mean square of an activation. In float16 EfficientNet-Lite0 has 8e-3 and 1.4e-2, in torch
# as in ONNX Runtime; single activations are off by up to 0.18 of the largest, 0.13 by the rounding of weights alone.
CEILINGS = {"fp32": 1e-3, "fp16": 5e-2}
# Of single activations, relative to the largest.
SINGLE_CEILINGS: dict[str, float | None] = {"fp32": 1e-3, "fp16": None}
# Of activations on inputs larger than the example, where float16 cancels more than any data makes it.
LARGE_CEILINGS = {"fp32": 1e-3, "fp16": 0.5}
# How many times more may arrive at a clamp than leaves it. Where one rounding in float16 (2⁻¹¹) of what arrives is more
# than the tolerance of what leaves, two right files differ by more than that; then only bounds are looked at.
CANCELLING = {"fp32": math.inf, "fp16": TOLERANCES["fp16"] * 2**11}
_ADVICE = (
    'float16 may be too coarse for this model: use precision="fp32", or form="min", which leaves weights as they are'
)
# OpenVINO is asked about fewer inputs: it compiles anew for exposed activations, and what it shares with ONNX Runtime
# (the file) has been compared already.
_OPENVINO_INPUTS = ("ordinary", "×10")

_logger = logging.getLogger(__name__)


class _Runner(Protocol):
    """An ONNX file in some runtime."""

    input_names: tuple[str, ...]

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """Outputs by name."""


def check_parity(
    graph: FlatGraph,
    plain: Path,
    exposed: Path,
    clamped: Mapping[str, str],
    clamps: Sequence[Clamp],
    precision: str,
    written: Written | None = None,
) -> tuple[ParityResult, dict[str, bool]]:
    """Compare the exported files with the sanitised graph.

    Args:
        graph: the reference.
        plain: the file as it will be handed over.
        exposed: the same file with every clamped activation as an extra output.
        clamped: by site, the name of that output.
        clamps: what each site is clamped by.
        precision: key of ``TOLERANCES``.
        written: what the file was made of, where that is not ``graph``.

    Returns:
        What was found, and by site whether an input drove the activation above its bound.

    Raises:
        ParityError: names site or output, batch and error.
        BackendUnavailableError: ONNX Runtime is missing.

    Warns:
        SaturationWarning: bounds that no input reached.
    """
    runtime = load_runtime("onnxruntime")
    reference = reference_cases(graph, clamped, written, CANCELLING[precision])
    reached = reference.reached
    comparison = _Comparison(clamped, clamps, precision, graph.excess)
    checks: list[ParityCheck] = []
    if precision == "fp16":
        require_survival(plain)
    for optimized in (False, True):
        # One thread: the order of additions, and so the figures kept in the file, stay the same from run to run.
        model, watched = (_load(path, optimized) for path in (plain, exposed))
        how = f"graph optimisation {'on' if optimized else 'off'}"
        checks += comparison.check_all(reference.cases, model, watched, how, optimized)
        _check_alarm(graph, model, how)
    runtimes = [f"onnxruntime {runtime.__version__}"]
    openvino = _openvino(plain, exposed)
    if openvino is not None:
        version, model_, watched_ = openvino
        runtimes.append(f"openvino {version}")
        cases = [case for case in reference.cases if case.name in _OPENVINO_INPUTS]
        checks += comparison.check_all(cases, model_, watched_, "OpenVINO", True, "openvino")
        _check_alarm(graph, model_, "OpenVINO")
    unreached = [site for site, hit in reached.items() if not hit]
    if unreached:
        shown = ", ".join(unreached[:5]) + (", …" if len(unreached) > 5 else "")
        warnings.warn(
            f"no verification input drove {len(unreached)} of {len(reached)} sites above their bounds ({shown}); their "
            "clamps were checked by structure only. Pass real samples as example_input to have them checked in action",
            SaturationWarning,
            stacklevel=4,
        )
    result = ParityResult(", ".join(runtimes), TOLERANCES[precision], tuple(checks), reference.skipped)
    return result, reached


class _Comparison:
    """What a file is held to, whichever runtime runs it."""

    def __init__(
        self, clamped: Mapping[str, str], clamps: Sequence[Clamp], precision: str, excess: str | None = None
    ) -> None:
        self.clamped, self.precision, self.excess = clamped, precision, excess
        self.upper = {clamp.site: torch.from_numpy(clamp.upper.copy()) for clamp in clamps if clamp.upper is not None}
        self.scales = {clamp.site: torch.from_numpy(clamp.scale.copy()) for clamp in clamps if clamp.scale is not None}

    def check_all(
        self,
        cases: Iterable[Case],
        model: _Runner,
        watched: _Runner,
        how: str,
        optimized: bool,
        runtime: str = "onnxruntime",
    ) -> list[ParityCheck]:
        """Compare the file, and the same with its activations exposed, on every case."""
        try:
            checks = [self._check(case, model, watched, how, optimized, runtime) for case in cases]
        except ParityError as error:
            if self.precision != "fp16":
                raise
            raise ParityError(f"{error}; {_ADVICE}") from error
        return [check for check in checks if check is not None]

    def _check(
        self, case: Case, model: _Runner, watched: _Runner, how: str, optimized: bool, runtime: str
    ) -> ParityCheck | None:
        where = f"{case}, {how}"
        tolerance = TOLERANCES[self.precision]
        single, whole = SINGLE_CEILINGS[self.precision], (LARGE_CEILINGS if case.enlarged else CEILINGS)[self.precision]
        outside = CEILINGS[self.precision]
        # Sites first, in the order in which they run: the first that differs is where the fault lies.
        errors: list[tuple[float, float, float]] = []
        results = _run(watched, case.inputs, where)
        for site, name in self.clamped.items():
            _check_bound(site, results[name], self.upper[site], where)
            if not case.compared:
                continue
            expected = case.activations[site]
            found = results[name]
            if site in self.scales:
                found = found.double() * self.scales[site]
            found = found.to(expected.dtype)
            if runtime == "openvino":
                # It takes denormal numbers for 0, in its arithmetic and in constants.
                found, expected = _without_denormals(found), _without_denormals(expected)
            errors.append(_compare(f"site {site}", found, expected, tolerance, case.rounding, where, single, whole))
        if not case.compared:
            return None
        results = _run(model, case.inputs, where)
        of_outputs = [
            _compare(
                f"output {name}",
                results[name],
                expected,
                tolerance,
                case.rounding,
                where,
                outside,
                least=1.0 if name == self.excess else 0.0,
            )
            for name, expected in case.outputs.items()
        ]
        errors += of_outputs
        return ParityCheck(
            inputs=case.name,
            batch=case.batch,
            optimized=optimized,
            max_abs=max(error[0] for error in errors),
            max_rel=max(error[1] for error in errors),
            agreement=min(error[2] for error in errors),
            runtime=runtime,
            output_rel=max((error[1] for error in of_outputs), default=0.0),
        )


def _check_alarm(graph: FlatGraph, model: _Runner, how: str) -> None:
    """A sample with NaN in its input has an infinite excess, and the one beside it a finite one."""
    inputs = [tensor.clone() for tensor in graph.batch(2)]
    spoilt = [
        tensor
        for tensor, dynamic in zip(inputs, graph.dynamic, strict=True)
        if 0 in dynamic and tensor.is_floating_point() and tensor[0].numel()
    ]
    if graph.excess is None or not spoilt:
        return
    for tensor in spoilt:
        tensor[1, *[-1] * (tensor.ndim - 1)] = math.nan
        where = f"NaN in a sample, {how}"
        found = _run(model, tuple(inputs), where)[graph.excess].tolist()
        if not (math.isfinite(found[0]) and found[1] == math.inf):
            raise ParityError(f"output {graph.excess}, {where}: is {found}; expected a finite number and infinity")
        tensor[1] = tensor[0]


def _without_denormals(values: Tensor) -> Tensor:
    return values.where(values.abs() >= torch.finfo(torch.float32).tiny, 0) if values.is_floating_point() else values


def _openvino(plain: Path, exposed: Path) -> tuple[str, OpenVinoModel, OpenVinoModel] | None:
    """OpenVINO's version, and the files in it; None where it is not installed or cannot load them."""
    try:
        version = str(load_runtime("openvino").__version__).partition("-")[0]
        return version, OpenVinoModel(plain), OpenVinoModel(exposed)
    except BackendUnavailableError:
        return None
    except DataError as error:
        # The file may be newer than what is installed; ONNX Runtime has run it.
        _logger.warning("not compared in OpenVINO: %s", error)
        return None


def _load(path: Path, optimized: bool) -> OnnxRuntimeModel:
    try:
        return OnnxRuntimeModel(path, threads=1, optimize=optimized)
    except DataError as error:
        raise ParityError(f"the exported file does not load: {error}") from error


def _run(model: _Runner, inputs: tuple[Tensor, ...], where: str) -> dict[str, Tensor]:
    feed = {name: tensor.contiguous().numpy() for name, tensor in zip(model.input_names, inputs, strict=True)}
    try:
        return model.run(feed)
    except DataError as error:
        raise ParityError(f"{where}: the exported file does not run: {error}") from error


def _check_bound(site: str, activation: Tensor, upper: Tensor, where: str) -> None:
    if bool((activation <= upper).all()):
        return
    if bool(torch.isnan(activation).any()):
        raise ParityError(f"site {site}, {where}: the file gives NaN, the sanitised graph does not")
    excess = (activation.double() - upper.double()).max().item()
    raise ParityError(f"site {site}, {where}: the file's activation exceeds its bound by {excess:.3g}; expected none")


def _compare(
    what: str,
    found: Tensor,
    expected: Tensor,
    tolerance: float,
    rounding: Mapping[str, float],
    where: str,
    single: float | None = CEILINGS["fp32"],
    whole: float | None = None,
    least: float = 0.0,
) -> tuple[float, float, float]:
    """Absolute error, relative error and argmax agreement; raises when they are not within the limit.

    However much is rounded, single values are held to ``single`` times the largest, and all to ``whole`` times the root
    mean square. The largest counts as ``least`` at least.
    """
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
    wide = torch.promote_types(expected.dtype, torch.float32)
    found, expected = found.to(wide), expected.to(wide)
    scale, absolute = max(largest(expected), least), largest(found - expected)
    relative = absolute / scale if scale else absolute
    rounded = ROUNDING * rounding.get(what, 0.0)
    limit = max(tolerance * scale, rounded if single is None else min(rounded, single * scale))
    if not absolute <= limit:
        raise ParityError(
            f"{what}, {where}: differs by {absolute:.3g}, {relative:.3g} of its largest magnitude {scale:.3g}; "
            f"expected at most {limit:.3g}. No file was written"
        )
    if whole is not None and absolute > tolerance * scale:
        _check_mean_error(what, found, expected, whole, where)
    return absolute, relative, _agreement(what, found, expected, limit, where)


def _check_mean_error(what: str, found: Tensor, expected: Tensor, ceiling: float, where: str) -> None:
    error, size = ((values.double() ** 2).mean().sqrt().item() for values in (found - expected, expected))
    if not error <= ceiling * size:
        raise ParityError(
            f"{what}, {where}: differs by {error:.3g} in the root mean square, which is {size:.3g} itself; "
            f"expected at most {ceiling * size:.3g}. No file was written"
        )


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
