"""The export, step by step: capture, bounds, translation, forms, names, verification, file."""

import copy
import errno
import hashlib
import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unit_fast.bounds import Bounds, require_bounds
from unit_fast.calibration.samples import SampleStore
from unit_fast.capture import Example, capture
from unit_fast.errors import DataError, ParityError
from unit_fast.export.clean import check_private, name_activations, name_signature, strip
from unit_fast.export.errors import ExportError
from unit_fast.export.excess import Excess, with_excess
from unit_fast.export.flat import FlatGraph, flatten_graph
from unit_fast.export.fold_normalization import fold_normalisation, normalise
from unit_fast.export.folding import fold_for, prove_folding
from unit_fast.export.folding.plan import label
from unit_fast.export.forms import Clamp, choose, lower
from unit_fast.export.fused import warn_of_unfused
from unit_fast.export.half import DIVISORS, in_half
from unit_fast.export.options import Options
from unit_fast.export.parity import check_parity
from unit_fast.export.provenance import describe, sign
from unit_fast.export.publish import data_name, publish
from unit_fast.export.quantization import (
    IntegerClamp,
    Loss,
    check_integer_clamps,
    check_samples,
    choose_folds,
    quantize,
)
from unit_fast.export.reference import Written
from unit_fast.export.report import ExportReport, SiteReport
from unit_fast.export.structure import check_structure
from unit_fast.export.translate import translate
from unit_fast.files import OutputError
from unit_fast.sites import find_sites, insert_bounds
from unit_fast.threshold import excess_thresholds

# Fewer say too little of ranges, and of predictions: of 32, one that changes is 3 %.
FEWEST_SAMPLES = 32
# A protobuf message holds at most 2 GiB; some of it is left for what is not tensors.
EXTERNAL_ABOVE = 2**31 - 2**24
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def export(
    model: nn.Module | torch.export.ExportedProgram,
    bounds: Bounds,
    path: Path,
    example_input: Example,
    options: Options,
    calibration_data: Iterable[Any] | None = None,
) -> ExportReport:
    """See :func:`unit_fast.export.exporter.export_onnx`; ``options`` have been checked."""
    started = time.perf_counter()
    require_bounds(bounds)
    options.check_bounds(bounds)
    with _working_folder(path) as folder, _calibration_samples(options, calibration_data, example_input) as samples:
        sanitised = _sanitised_graph(model, bounds, example_input)
        return _write(sanitised, bounds, path, example_input, options, samples, folder, started)


def export_graph(
    sanitised: fx.GraphModule,
    bounds: Bounds,
    path: Path,
    example_input: Example,
    options: Options,
    calibration_data: Iterable[Any] | None = None,
) -> ExportReport:
    """Export a sanitised graph as it is, whatever became of its weights; otherwise as :func:`export`."""
    started = time.perf_counter()
    with _working_folder(path) as folder, _calibration_samples(options, calibration_data, example_input) as samples:
        return _write(sanitised, bounds, path, example_input, options, samples, folder, started)


@contextmanager
def _calibration_samples(
    options: Options, calibration_data: Iterable[Any] | None, example_input: Example
) -> Iterator[SampleStore | None]:
    """The samples that int8 is fitted to; nothing at other precisions."""
    if options.precision != "int8":
        if calibration_data is not None:
            raise ExportError(f'calibration_data serves precision="int8" only, not {options.precision!r}; leave it out')
        yield None
        return
    if calibration_data is None:
        raise DataError(
            'precision="int8" needs calibration_data: batches of (x, y) or x with a few hundred clean samples, such as '
            "the loader that the bounds were calibrated on"
        )
    if not hasattr(calibration_data, "__iter__") and not hasattr(calibration_data, "__getitem__"):
        raise DataError(
            f"calibration_data is a {type(calibration_data).__name__}; expected batches of (x, y) or x, as of a loader"
        )
    with SampleStore(calibration_data, example=example_input) as samples:
        if len(samples) < FEWEST_SAMPLES:
            raise DataError(
                f"calibration_data holds {len(samples)} samples; int8 needs at least {FEWEST_SAMPLES}, better a few "
                "hundred"
            )
        yield samples


def _write(
    sanitised: fx.GraphModule,
    bounds: Bounds,
    path: Path,
    example_input: Example,
    options: Options,
    samples: SampleStore | None,
    folder: Path,
    started: float,
) -> ExportReport:
    excess = Excess.of(sanitised, bounds) if options.inspect else None
    graph = flatten_graph(sanitised, example_input)
    _require_float32(graph)
    if options.normalization is not None:
        graph = normalise(graph, options.normalization)
    losses: dict[str, Loss] = {}
    if samples is None:
        choice = choose(options.form, options.target, bounds.granularity, options.inspect)
    else:
        check_samples(graph, samples)
        choice, losses = choose_folds(graph, options.form, samples, options.weight_bits)
    if options.precision == "fp16":
        choice = replace(choice, divisors=DIVISORS)
    folded = fold_for(graph, choice)
    if options.verify and folded.sites:
        prove_folding(graph, choice)
    made = folded.graph if options.normalization is None else fold_normalisation(folded.graph)
    made = in_half(made) if options.precision == "fp16" else made
    rewritten = made is not graph
    if excess is not None:
        graph, made = with_excess(graph, excess), with_excess(made, excess)
    exported, site_bounds = translate(made, options.opset)
    clamps = lower(exported, site_bounds, choice, folded.sites)
    strip(exported)
    name_signature(exported, graph)
    name_activations(exported)
    data = data_name(exported, path) if _tensor_bytes(exported) > EXTERNAL_ABOVE else None

    plain = folder / "plain.onnx"
    ir.save(exported, plain, external_data=data)
    clamped = check_structure(onnx.load(plain), clamps, options.opset, inspected=options.inspect)
    parity, reached = None, dict[str, bool]()
    if options.verify:
        exposed = folder / "exposed.onnx"
        _expose(plain, exposed, clamped)
        # int8 is measured against the float32 graph that it is made of, which has to be right first.
        compared = "fp32" if samples is not None else options.precision
        origin = Written(made, folded.scales) if rewritten else None
        parity, reached = check_parity(graph, plain, exposed, clamped, clamps, compared, origin)
        if options.precision == "fp32" and not options.inspect:
            warn_of_unfused(plain, options.target, clamps)
    written: dict[str, Clamp | IntegerClamp] = {clamp.site: clamp for clamp in clamps}
    accuracy = None
    if samples is not None:
        quantized = quantize(exported, graph, clamps, losses, plain, samples, options.weight_bits, data)
        written |= {clamp.site: clamp for clamp in quantized.integer}
        accuracy = quantized.accuracy

    thresholds = excess_thresholds(bounds) if options.inspect else None
    entries = describe(
        bounds, graph, [*written.values()], options.form, options.precision, parity, accuracy, options.normalization,
        thresholds,
    )  # fmt: skip
    sign(exported, entries)
    final = folder / "final.onnx"
    ir.save(exported, final, external_data=data)
    _check_file(final, [*written.values()], options)
    size = publish(final, path, folder / data if data else None)
    return ExportReport(
        path=path,
        opset=options.opset,
        form=options.form,
        precision=options.precision,
        sites=tuple(
            SiteReport(
                clamp.site,
                clamp.form,
                clamp.reason,
                tuple(bounds[clamp.site].shape),
                reached.get(clamp.site) if options.verify else None,
            )
            for clamp in written.values()
        ),
        size=size,
        external_data=path.with_name(data) if data else None,
        parity=parity,
        accuracy=accuracy,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        seconds=time.perf_counter() - started,
        thresholds=thresholds,
    )


@contextmanager
def _working_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path``, gone afterwards, so that a place that cannot be written is known before the work."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; create the folder {path.parent} or choose another place"
        ) from error
    with folder as name:
        try:
            yield Path(name)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise OutputError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error


def _sanitised_graph(
    model: nn.Module | torch.export.ExportedProgram, bounds: Bounds, example_input: Example
) -> fx.GraphModule:
    captured = capture(_on_cpu(model), _to_cpu(example_input))
    bounds.require_model(captured.meta["fingerprint"], find_sites(captured))
    return insert_bounds(captured, {name: bound.cpu() for name, bound in bounds.items()})


def _on_cpu(model: nn.Module | torch.export.ExportedProgram) -> nn.Module | torch.export.ExportedProgram:
    if isinstance(model, nn.Module) and any(
        tensor.device.type != "cpu" for tensor in itertools.chain(model.parameters(), model.buffers())
    ):
        return copy.deepcopy(model).cpu()
    return model


def _to_cpu(example_input: Example) -> Example:
    moved: Example = pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, example_input)
    return moved


def _require_float32(graph: FlatGraph) -> None:
    module = graph.module
    given = [*module.named_parameters(), *module.named_buffers(), *zip(graph.input_names, graph.inputs, strict=True)]
    dtypes = {tensor.dtype for name, tensor in given if not name.startswith("bounds.")}
    for node in module.graph.nodes:
        value = node.meta.get("val")
        halved = isinstance(value, Tensor) and value.dtype in {torch.bfloat16, torch.float16} - dtypes
        if halved and node.op == "call_function":
            raise ExportError(
                f"{label(node)} computes in {value.dtype}, by torch.autocast or a cast inside the model; the export "
                'takes models that compute in float32: leave that out, and choose precision="fp16" instead'
            )
    for name, tensor in given:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(
                f"{name} is {tensor.dtype}; the export takes models and inputs in float32: convert the model with "
                "model.float()"
            )


def _tensor_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _expose(plain: Path, exposed: Path, clamped: dict[str, str]) -> None:
    """A copy of the file ``plain`` in which every clamped activation is an output."""
    model = onnx.load(plain, load_external_data=False)
    known = {value.name: value for value in model.graph.value_info}
    outputs = {value.name for value in model.graph.output}
    model.graph.output.extend(known[name] for name in clamped.values() if name not in outputs)
    onnx.save(model, exposed)


def _check_file(file: Path, clamps: Sequence[Clamp | IntegerClamp], options: Options) -> None:
    try:
        onnx.checker.check_model(file, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"the ONNX checker rejects the exported file: {error}") from error
    model = onnx.load(file)
    integer = [clamp for clamp in clamps if isinstance(clamp, IntegerClamp)]
    floating = [clamp for clamp in clamps if isinstance(clamp, Clamp)]
    check_structure(model, floating, options.opset, [clamp.site for clamp in integer], options.inspect)
    check_integer_clamps(model, integer)
    check_private(model)
