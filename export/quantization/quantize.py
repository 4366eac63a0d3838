"""A verified float32 export ⇒ the same graph in int8, its clamps in the quantisers, measured against it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from unit_fast.calibration.samples import SampleStore
from unit_fast.export.flat import FlatGraph
from unit_fast.export.forms.form import Clamp
from unit_fast.export.quantization.accuracy import check_accuracy, measure_accuracy
from unit_fast.export.quantization.folds import Loss
from unit_fast.export.quantization.insert import insert_quantizers
from unit_fast.export.quantization.means import pool_means
from unit_fast.export.quantization.placement import Placement, data_input, place
from unit_fast.export.quantization.ranges import Range, collect_means, collect_ranges
from unit_fast.export.quantization.scales import Quantizer, for_bound, for_range
from unit_fast.export.quantization.structure import IntegerClamp, check_integer_clamps
from unit_fast.export.quantization.tails import activation_after, clamped_result, narrowed
from unit_fast.export.quantization.verification import check_integers, warn_of_float_layers
from unit_fast.export.report import Int8Accuracy

# Bytes of one site's limits, beyond which a file would grow by more than the time is worth.
_LARGEST_SPREAD = 2**18


@dataclass(frozen=True)
class Quantized:
    """What became of the clamps, and what int8 costs.

    Attributes:
        integer: clamps of the sites that are quantised.
        floating: clamps of the sites that only float operators read; they stay as they were.
        accuracy: measured on the calibration data.
    """

    integer: tuple[IntegerClamp, ...]
    floating: tuple[Clamp, ...]
    accuracy: Int8Accuracy


def quantize(
    model: ir.Model,
    graph: FlatGraph,
    clamps: Sequence[Clamp],
    losses: Mapping[str, Loss],
    plain: Path,
    samples: SampleStore,
    bits: int,
    data: str | None,
) -> Quantized:
    """Bring ``model`` into QDQ form, in place, and verify it in ONNX Runtime.

    Args:
        model: exported in the ``min`` form.
        graph: its reference.
        clamps: of its sites.
        losses: what folding would have cost, by site that was not folded for it.
        plain: the same model as a file, in a folder for temporary files.
        samples: calibration data.
        bits: of weights, 8 or 7.
        data: name of a file beside ``plain`` for the tensors of very large models.

    Raises:
        ParityError: a clamp is not what was planned, an activation exceeds its bound, or int8 costs too much.
        DataError: the calibration data does not fit the model.
    """
    integer = convert(model, clamps, plain, samples, bits, losses)
    sites = {clamp.site for clamp in integer}
    floating = tuple(clamp for clamp in clamps if clamp.site not in sites)
    quantized = plain.with_name("quantized.onnx")
    ir.save(model, quantized, external_data=data)
    clamped = check_integer_clamps(onnx.load(quantized), integer)
    check_integers(graph, quantized, plain.with_name("exposed.onnx"), clamped, integer)
    warn_of_float_layers(quantized, plain.with_name("optimized.onnx"))
    accuracy = measure_accuracy(plain, quantized, samples)
    check_accuracy(accuracy)
    return Quantized(integer, floating, accuracy)


def convert(
    model: ir.Model,
    clamps: Sequence[Clamp],
    plain: Path,
    samples: SampleStore,
    bits: int,
    losses: Mapping[str, Loss] | None = None,
) -> tuple[IntegerClamp, ...]:
    """Bring ``model`` into QDQ form, in place; returns the clamps of all sites that are quantised."""
    bounds = {clamp.site: clamp.upper for clamp in clamps if clamp.upper is not None}
    aliases = pool_means(model.graph)
    placement = place(model.graph, bounds)
    own = [spot for spot in placement.spots if not spot.same_as]
    read = {node: (data_input(node), 1 if node.op_type == "Conv" else -1) for node in placement.weighted}
    values = (*(spot.value for spot in own), *(value for value, _ in read.values()))
    names = {value: aliases.get(value.name or "", value.name or "") for value in values}
    watched = plain.with_name("watched.onnx")
    ranges = collect_ranges(plain, [names[spot.value] for spot in own], samples, watched)
    means = collect_means(plain, {(names[value], axis) for value, axis in read.values()}, samples, watched)
    seen = {spot.value: ranges[names[spot.value]] for spot in own}
    quantizers = _quantizers(placement, seen, model.opset_imports[""])
    described = {clamp.site: clamp for clamp in clamps}
    made = tuple(
        IntegerClamp(
            spot.site,
            quantizers[spot.value],
            bounds[spot.site],
            _reason(described[spot.site], quantizers[spot.value], (losses or {}).get(spot.site)),
        )
        for spot in own
        if spot.site is not None
    )
    inputs = {node: means[names[value], axis] for node, (value, axis) in read.items()}
    insert_quantizers(model.graph, placement, quantizers, bits, inputs)
    return made


def _quantizers(placement: Placement, seen: Mapping[ir.Value, Range], opset: int) -> dict[ir.Value, Quantizer]:
    found: dict[ir.Value, Quantizer] = {}
    for spot in placement.spots:
        if spot.same_as:
            found[spot.value] = _joined([found[value] for value in spot.same_as])
            continue
        values = seen[spot.value]
        if spot.bound is None:
            found[spot.value] = for_range(values.lower, values.upper)
        else:
            lower = 0.0 if spot.rectified else values.lower
            quantizer = for_bound(spot.bound, lower, values.upper, per_unit=spot.bound.size > 1)
            found[spot.value] = _spread(quantizer, spot.value)
    for spot in placement.spots:
        activation = activation_after(spot)
        if spot.same_as or spot.bound is not None or activation is None:
            continue
        result = found.get(clamped_result(activation))
        if result is not None:
            values = narrowed(activation, opset, seen[spot.value], result)
            found[spot.value] = for_range(values.lower, values.upper)
    return found


def _joined(parts: Sequence[Quantizer]) -> Quantizer:
    first = parts[0]
    if all(part.scale == first.scale and part.zero_point == first.zero_point for part in parts):
        return Quantizer(first.scale, first.zero_point)
    ends = [(float(part.value(np.uint8(0))), float(part.value(np.uint8(255)))) for part in parts]
    return for_range(min(lower for lower, _ in ends), max(upper for _, upper in ends))


def _spread(quantizer: Quantizer, value: ir.Value) -> Quantizer:
    """An integer limit by channel, written out for every neuron: a Min of equal shapes takes a third of the time."""
    if quantizer.limit is None or quantizer.limit.ndim != 3 or value.shape is None:
        return quantizer
    shape = [size for size in value.shape[1:] if isinstance(size, int)]
    if len(shape) != 3 or np.prod(shape) > _LARGEST_SPREAD:
        return quantizer
    limit = np.ascontiguousarray(np.broadcast_to(quantizer.limit, shape))
    return Quantizer(quantizer.scale, quantizer.zero_point, limit)


def _reason(clamp: Clamp, quantizer: Quantizer, loss: Loss | None) -> str:
    assert clamp.upper is not None
    if quantizer.limit is None:
        ends = (
            "where the calibration data does, far below the bound"
            if quantizer.largest < 0.99 * clamp.upper.min()
            else "at the bound"
        )
        return f"{'folded; ' if clamp.form == 'folded' else ''}the scale ends {ends}"
    if loss is not None:
        return f"folding would cost accuracy in {loss.layer}: {loss.before:.1f} dB to {loss.after:.1f} dB"
    if clamp.upper.size == 1:
        return "no scale ends at so small or negative a bound"
    _, _, refusal = clamp.reason.partition("not folded: ")
    return "; ".join(filter(None, [f"one scale for {clamp.upper.size} bounds", refusal]))
