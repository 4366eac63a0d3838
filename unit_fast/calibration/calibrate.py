"""From a model and clean samples to bounds: the steps that every method shares."""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unit_fast.bounds import Bounds, CleanReadings
from unit_fast.calibration.context import CalibrationContext, Method
from unit_fast.calibration.granularity import Granularity, check_granularity
from unit_fast.calibration.inputs import Inputs, call_model
from unit_fast.calibration.logits import check_logits, default_logits
from unit_fast.calibration.progress import Progress, reporting
from unit_fast.calibration.readings import clean_readings
from unit_fast.calibration.samples import SampleStore
from unit_fast.calibration.survey import Survey, survey
from unit_fast.capture import Example, call_arguments, capture, evaluation_mode, hint_at_dicts
from unit_fast.errors import CaptureError, DataError, UnitFastError, UnitFastWarning
from unit_fast.sites import find_sites, insert_bounds

FIT_FRACTION = 0.8
"""Of each class, for fitting; the rest is for validation (UNIT, section 4.1)."""

Model: TypeAlias = nn.Module | torch.export.ExportedProgram


def calibrate(
    model: Model,
    loader: Iterable[Any],
    method: Method | None = None,
    granularity: Granularity = "neuron",
    *,
    example_input: Example | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    seed: int = 0,
    logits: Callable[[Any], Tensor] | None = None,
    progress: Progress | bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    batch_size: int = 128,
) -> Bounds:
    """Fit bounds for ``model`` on clean samples.

    The model is captured and run where its parameters lie, and left as it is: weights, buffers, training mode and
    ``requires_grad``. Random choices come from ``seed`` alone.

    Args:
        model: a classifier, or a program exported from one.
        loader: iterated once: batches ``(x, y)``, ``(x, None)`` or ``x``; ``x`` (N, …) a tensor, a tuple of
            positional arguments, or a dict of keyword arguments; ``({"a": a, "b": b},)``, so batches
            ``(({"a": a, "b": b},), y)``, for a model whose one argument is a dict. ``y`` class indices (N,); without
            labels the model's own predictions are the labels.
        method: ``Unit()`` (the default), ``MeanStd(k)``, ``Percentile(q)``, ``Maximum()`` or a
            :class:`Method` of yours.
        granularity: "neuron", "channel" or "tensor".
        example_input: what to capture with; by default the first samples of the loader.
        include: glob patterns over site names; only these sites get bounds.
        exclude: glob patterns; these sites get none.
        seed: of the split into fit and validation and of the method.
        logits: takes the model's output to its class scores (N, classes), where it is more than one tensor.
        progress: True draws a bar on standard error; a callable is called with a
            :class:`~unit_fast.calibration.progress.ProgressStep`; None is silent.
        checkpoint: the file that methods which search save their state to and resume from.
        batch_size: samples a mini-batch: memory grows with it, and with nothing else in the data.

    Returns:
        The bounds, float32 on the CPU. Their metadata say method, settings, seed, sample counts, accuracies of the
        fit and validation parts before and after in [0, 1], and versions.

    Raises:
        DataError: the loader gives nothing usable, or activations are NaN or infinite.
        CaptureError: the model has no plain graph, or no site is left.
        ToleranceError: the method found no bounds within its tolerance.
        UnitFastError: an option is out of its range.
    """
    method = _method(method)
    granularity = check_granularity(granularity)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise UnitFastError(f"batch_size must be at least 1, a whole number; got {batch_size!r}")
    device, float_dtype = _home(model, example_input)
    # Methods take gradients, whatever mode the caller is in.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        SampleStore(loader, device, float_dtype) as samples,
        reporting(progress, f"calibrating ({method.name})") as report,
    ):
        graph = _captured(model, example_input, samples)
        sites = find_sites(graph, include, exclude)
        scores = _checked(logits) if logits is not None else default_logits
        seen = survey(graph, sites, samples, granularity, scores, batch_size)
        samples.check_labels(seen.num_classes)
        if samples.labels is None:
            samples.set_labels(seen.predictions)
        split = samples.split(FIT_FRACTION, seed, shuffle=method.shuffles_split)
        context = CalibrationContext(
            graph=graph,
            sites=sites,
            samples=samples,
            fit_indices=split.fit,
            validation_indices=split.validation,
            granularity=granularity,
            seed=seed,
            device=device,
            logits=scores,
            batch_size=batch_size,
            progress=report,
            checkpoint=None if checkpoint is None else Path(checkpoint),
        )
        return _result(context, method, method.fit(context), seen)


def _method(method: Method | None) -> Method:
    if method is None:
        from unit_fast.calibration.unit import Unit

        return Unit()
    if not isinstance(method, Method):
        hint = f"make one: {method.__name__}()" if isinstance(method, type) else "such as Unit() or MeanStd()"
        raise UnitFastError(f"method must be a calibration method; got {method!r}: {hint}")
    return method


def _home(model: Model, example_input: Example | None) -> tuple[torch.device, torch.dtype | None]:
    """Where the model runs, and the dtype it takes floating inputs in: the example's where there is one."""
    if isinstance(model, nn.Module):
        weights = [*model.parameters(), *model.buffers()]
    elif isinstance(model, torch.export.ExportedProgram):
        weights = [value for value in model.state_dict.values() if isinstance(value, Tensor)]
    else:
        raise CaptureError(
            f"model is a {type(model).__name__}; expected a torch.nn.Module or a torch.export.ExportedProgram"
        )
    example = [] if example_input is None else _leaves(example_input)
    devices = [tensor.device for tensor in (*weights, *example)]
    dtypes = (tensor.dtype for tensor in (*example, *weights) if tensor.is_floating_point())
    return next(iter(devices), torch.device("cpu")), next(dtypes, None)


def _captured(model: Model, example_input: Example | None, samples: SampleStore) -> fx.GraphModule:
    if example_input is not None:
        expected = [tuple(leaf.shape[1:]) for leaf in _leaves(example_input)]
        found = list(samples.input_shapes.values())
        if found != expected:
            raise DataError(
                f"the loader's samples have the shape {_shapes(found)}, example_input's have {_shapes(expected)}; give "
                "samples of the size that the model is served"
            )
        return capture(model, pytree.tree_map_only(Tensor, lambda leaf: leaf.to(samples.device), example_input))
    example = samples.read(torch.arange(min(2, len(samples)))).x
    try:
        return capture(model, example)
    except CaptureError:
        if isinstance(model, nn.Module):
            _require_running(model, example, samples)
        raise


def _require_running(model: nn.Module, example: Inputs, samples: SampleStore) -> None:
    """Tell data that does not fit the model from a model that cannot be captured."""
    with evaluation_mode(model), torch.no_grad():
        try:
            call_model(model, example)
        except Exception as error:
            dtypes = ", ".join(str(leaf.dtype) for leaf in _leaves(example))
            raise DataError(
                f"the model does not run on the loader's samples of shape {_shapes(samples.input_shapes.values())} "
                f"({dtypes}): {error}; give samples of the size and dtype that the model is served"
                f"{hint_at_dicts(example)}"
            ) from error


def _result(context: CalibrationContext, method: Method, tensors: dict[str, Tensor], seen: Survey) -> Bounds:
    _require_bounds(context, method, tensors)
    bounds = {site.name: tensors[site.name].detach().to("cpu", torch.float32) for site in context.sites}
    sanitised = insert_bounds(context.graph, {name: bound.to(context.device) for name, bound in bounds.items()})
    labels = context.samples.labels
    assert labels is not None  # given, or set to the predictions
    correct = seen.predictions == labels
    metadata = {
        "method": method.name,
        "settings": method.settings(),
        "seed": context.seed,
        "samples": {
            "fit": len(context.fit_indices),
            "validation": len(context.validation_indices),
            "classes": seen.num_classes,
            "labels": "given" if context.samples.labels_given else "predicted by the model",
        },
        "accuracy": {
            "fit_before": _share(correct[context.fit_indices]),
            "fit_after": context.accuracy(sanitised, context.fit_indices),
            "validation_before": _share(correct[context.validation_indices]),
            "validation_after": context.accuracy(sanitised, context.validation_indices),
        },
        "without_bounds": [site.name for site in find_sites(context.graph) if site.name not in bounds],
        "versions": {"torch": torch.__version__, "unit_fast": _own_version()},
        **context.notes,
    }
    fingerprint = context.graph.meta["fingerprint"]
    readings = _readings(context, sanitised)
    return Bounds(bounds, context.sites, context.granularity, fingerprint, metadata, seen.clean, readings)


def _readings(context: CalibrationContext, sanitised: fx.GraphModule) -> CleanReadings | None:
    """What is usual, of the samples held out; None where activations cannot be told apart by sample."""
    held_out = context.samples.batches(context.validation_indices, context.batch_size)
    try:
        return clean_readings(sanitised, (batch.x for batch in held_out))
    except CaptureError as error:
        warnings.warn(f"these bounds clamp, but no alarm can be raised by them: {error}", UnitFastWarning, stacklevel=4)
        return None


def _require_bounds(context: CalibrationContext, method: Method, tensors: dict[str, Tensor]) -> None:
    names = [site.name for site in context.sites]
    missing, unknown = [name for name in names if name not in tensors], [name for name in tensors if name not in names]
    if missing or unknown:
        what = f"no bounds for {', '.join(missing)}" if missing else f"bounds for {', '.join(unknown)}, no sites here"
        raise UnitFastError(f"the method {method.name} returned {what}; expected one for each of {', '.join(names)}")
    for name in names:
        bound = tensors[name]
        found = "NaN" if isinstance(bound, Tensor) and bool(bound.isnan().any()) else type(bound).__name__
        if found == "NaN" or not isinstance(bound, Tensor):
            raise UnitFastError(
                f"the method {method.name} returned {found} as the bound of {name}; expected a tensor without NaN of "
                "the granularity's shape"
            )


def _checked(logits: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    return lambda output: check_logits(logits(output))


def _leaves(inputs: Example) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(call_arguments(inputs)) if isinstance(leaf, Tensor)]


def _shapes(shapes: Iterable[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))


def _share(correct: Tensor) -> float:
    return float(correct.double().mean())


def _own_version() -> str:
    try:
        return version("unit_fast")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
