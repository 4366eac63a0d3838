"""An exported file as the installed ONNX Runtime optimises it for this processor, with its bounds in the same layout.

Conv → ReorderOutput → Min(·, b) → ReorderInput → Conv  ⇒  Conv → Min(·, b in blocks) → Conv

On a CPU, ONNX Runtime computes convolutions on blocks of 8 or 16 channels (NCHWc), and hands activations on in that
layout through what is pointwise, but not through an operator with a constant: in front of every Min they are changed
back, and behind it once more. So a Min is written as a Sigmoid, which they are handed through; ONNX Runtime optimises
and saves the graph; and the Sigmoid becomes the Min again, with its bound in blocks.
"""

import logging
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from unit_fast.errors import DataError, ParityError
from unit_fast.export.errors import ExportError
from unit_fast.export.onnx_file import metadata_of, open_onnx
from unit_fast.export.parity import CEILINGS, ROUNDING, TOLERANCES
from unit_fast.export.random_inputs import random_inputs
from unit_fast.export.report import OptimizedFile
from unit_fast.export.runtimes import load_runtime
from unit_fast.export.session import OPTIMIZED_KEY, OnnxRuntimeModel
from unit_fast.files import OutputError, atomic_write

BATCHES = (1, 2, 7)
SCALES = (1.0, 10.0, 100.0)
_BLOCKED = "com.microsoft.nchwc"
_MARKER = "Sigmoid"
# They move transpositions across a marker, whose bound would then lie otherwise than the activations.
_MOVING = ["TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Bound:
    """The bound of a Min, float32 (C, H, W), with the names that it and its node have in the file."""

    node: str
    name: str
    values: np.ndarray


def optimize(source: Path, target: Path, verify: bool) -> OptimizedFile:
    """See :func:`unit_fast.export.exporter.optimize_onnx`."""
    model = _load(source)
    if target.exists() and target.samefile(source):
        raise OutputError(
            f"{target} is the file to be optimised, which is needed elsewhere; name another for the output"
        )
    with tempfile.TemporaryDirectory(prefix="unit_fast-") as name:
        folder = Path(name)
        marked = _clamps_per_neuron(model)
        total = len(marked)
        optimized = _optimize(model, marked, folder)
        while lost := set(marked) - _markers(optimized):
            # A convolution without an activation of its own takes the marker for one.
            marked = {marker: bound for marker, bound in marked.items() if marker not in lost}
            optimized = _optimize(model, marked, folder)
        in_blocks = _clamp(optimized, marked)
        _subtract_in_blocks(optimized)
        made_for = here()
        del optimized.metadata_props[:]
        helper.set_model_props(optimized, metadata_of(model))
        optimized.metadata_props.add(key=OPTIMIZED_KEY, value=made_for)
        file = folder / "final.onnx"
        onnx.save(optimized, file)
        error = _compare(source, file) if verify else None
        atomic_write(target, lambda temporary: shutil.copyfile(file, temporary))
    _logger.info("%d of %d clamps per neuron are in blocks", in_blocks, total)
    return OptimizedFile(target, made_for, total, in_blocks, error)


def here() -> str:
    """The ONNX Runtime and the kind of processor at hand, as optimised files name theirs."""
    version = load_runtime("onnxruntime").__version__
    return f"onnxruntime {version} on {platform.machine()}, blocks of {_block()} channels"


@cache
def _block() -> int:
    """How many channels ONNX Runtime takes together on this processor: 8 or 16; 1 where it knows no blocks."""
    most = 64
    graph = helper.make_graph(
        [helper.make_node("ReorderInput", ["x"], ["y"], domain=_BLOCKED)],
        "block",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, most, 1, 2))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    operators = [helper.make_opsetid("", 18), helper.make_opsetid(_BLOCKED, 1)]
    model = helper.make_model(graph, opset_imports=operators, ir_version=8)
    try:
        session = _session(model.SerializeToString())
    except DataError:  # it has no such operator
        return 1
    channels_first = np.arange(2 * most, dtype=np.float32).reshape(1, most, 1, 2)
    (reordered,) = session.run(None, {"x": channels_first})
    # The first place of the second pixel lies behind one block of the first.
    return int(np.flatnonzero(np.ravel(reordered) == 1)[0])


def _session(model: str | bytes, saved: Path | None = None) -> Any:
    runtime = load_runtime("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    try:
        return runtime.InferenceSession(
            model,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_MOVING,
        )
    except Exception as error:
        raise DataError(f"ONNX Runtime cannot load it: {error}") from error


def _load(path: Path) -> onnx.ModelProto:
    model = open_onnx(path)
    if any(uses_external_data(tensor) for tensor in model.graph.initializer):
        raise DataError(f"the tensors of {path} lie in another file, as those above 2 GB do; expected them in it")
    entries = metadata_of(model)
    if OPTIMIZED_KEY in entries:
        raise ExportError(f"{path} was optimised already, for {entries[OPTIMIZED_KEY]}; give the file it was made of")
    precision = entries.get("unit_fast.precision", "fp32")
    if precision != "fp32":
        raise ExportError(f'{path} is in {precision}; expected a file of precision="fp32"')
    return model


def _clamps_per_neuron(model: onnx.ModelProto) -> dict[str, _Bound]:
    """The bounds of the Min nodes that clamp maps (N, C, H, W) by (C, H, W) in float32, by the name of the marker."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    shapes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}
    found = {}
    for index, node in enumerate(model.graph.node):
        if node.op_type != "Min" or node.domain or len(node.input) != 2:
            continue
        activation, name = node.input
        if name in tensors and activation not in tensors and tensors[name].data_type == onnx.TensorProto.FLOAT:
            bound = numpy_helper.to_array(tensors[name])
            if bound.ndim == 3 and shapes.get(activation, [])[1:] == list(bound.shape):
                found[_marker_of(index)] = _Bound(node.name, name, bound)
    return found


def _marker_of(index: int) -> str:
    return f"unit_fast/marker/{index}"  # nodes need not have names, nor each its own


def _optimize(model: onnx.ModelProto, marked: Collection[str], folder: Path) -> onnx.ModelProto:
    """The graph as ONNX Runtime optimises it, with the markers ``marked`` in place of their nodes."""
    with_markers = onnx.ModelProto()
    with_markers.CopyFrom(model)
    for index, node in enumerate(with_markers.graph.node):
        if (marker := _marker_of(index)) in marked:
            node.op_type, node.name = _MARKER, marker
            del node.input[1:]
    before, after = folder / "marked.onnx", folder / "optimized.onnx"
    onnx.save(with_markers, before)
    _session(str(before), after)
    return onnx.load(after)


def _markers(model: onnx.ModelProto) -> set[str]:
    return {node.name for node in model.graph.node if node.op_type == _MARKER and not node.domain}


def _clamp(model: onnx.ModelProto, bounds: dict[str, _Bound]) -> int:
    """Turn the markers into Min with their bounds; returns how many of these are in blocks."""
    in_blocks: set[str] = set()  # activations
    clamped = 0
    for node in model.graph.node:
        # What does not know the layout is never given it; so what is neither given nor gives it back hands it on.
        if node.domain == _BLOCKED:
            blocked = node.op_type != "ReorderOutput"
        else:
            blocked = any(name in in_blocks for name in node.input)
        if blocked:
            in_blocks.update(node.output)
        bound = bounds.get(node.name)
        if bound is None or node.op_type != _MARKER:
            continue
        name = f"{bound.name}/blocks" if blocked else bound.name
        if all(tensor.name != name for tensor in model.graph.initializer):
            values = _in_blocks(bound.values, _block()) if blocked else bound.values
            model.graph.initializer.append(numpy_helper.from_array(values, name))
        node.op_type, node.name = "Min", bound.node
        node.input.append(name)
        clamped += blocked
    return clamped


def _subtract_in_blocks(model: onnx.ModelProto) -> None:
    """ReorderOutput(x) − ReorderOutput(y) → ReduceMax ⇒ x − y → ReduceMax, in place.

    What a clamp takes away is looked at for its maximum alone, which is the same in any order; the model's own maxima
    may be over some dimensions only.
    """
    reorders = {node.output[0]: node for node in model.graph.node if node.op_type == "ReorderOutput"}
    readers = Counter(name for node in model.graph.node for name in node.input)
    of_samples = {tensor.name for tensor in model.graph.initializer if _axes(tensor) == [1, 2, 3]}
    reduced = {
        node.input[0]
        for node in model.graph.node
        if node.op_type == "ReduceMax" and not of_samples.isdisjoint(node.input[1:])
    }
    for node in model.graph.node:
        if node.op_type != "Sub" or not all(name in reorders for name in node.input):
            continue
        if node.output[0] not in reduced or readers[node.output[0]] != 1:
            continue
        found = [reorders[name] for name in node.input]
        # What fills up a block of channels counts as an activation here.
        if all(_channels_of(reorder) % _block() == 0 for reorder in found):
            del node.input[:]
            node.input.extend(reorder.input[0] for reorder in found)
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    for name, reorder in reorders.items():
        if name not in read:
            model.graph.node.remove(reorder)


def _axes(tensor: onnx.TensorProto) -> list[int]:
    whole = tensor.data_type == onnx.TensorProto.INT64 and list(tensor.dims) == [3]
    return numpy_helper.to_array(tensor).tolist() if whole else []


def _channels_of(reorder: onnx.NodeProto) -> int:
    return next(int(attribute.i) for attribute in reorder.attribute if attribute.name == "channels")


def _in_blocks(values: np.ndarray, block: int) -> np.ndarray:
    """(C, H, W) in the order (C / block, H, W, block), C filled up with zeros; shaped (filled C, H, W)."""
    channels, height, width = values.shape
    filled = -(-channels // block) * block
    padded = np.pad(values, ((0, filled - channels), (0, 0), (0, 0)))
    blocks = padded.reshape(filled // block, block, height, width).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(blocks).reshape(filled, height, width)


def _compare(source: Path, file: Path) -> float:
    """The largest relative difference between the two files' outputs.

    It may be 1e-5, or four times what ONNX Runtime's optimisation changes in the original where that is more, but never
    above 1e-3: as between an exported file and torch.
    """
    plainly, optimized, new = (
        OnnxRuntimeModel(path, threads=1, optimize=optimize)
        for path, optimize in ((source, False), (source, True), (file, True))
    )
    worst = 0.0
    for batch in BATCHES:
        for scale in SCALES:
            inputs = random_inputs(plainly, batch, scale)
            expected, rounded, found = (list(model.run(inputs).values()) for model in (plainly, optimized, new))
            for name, *outputs in zip(plainly.output_names, expected, rounded, found, strict=True):
                want, other, got = (output.double().numpy() for output in outputs)
                least = 1.0 if name == plainly.excess else 0.0
                usual, error = _difference(other, want, least), _difference(got, want, least)
                limit = max(TOLERANCES["fp32"], min(ROUNDING * usual, CEILINGS["fp32"]))
                if not error <= limit:
                    raise ParityError(
                        f"output {name}, batch {batch}, inputs ×{scale:g}: the optimised file differs by {error:.3g} "
                        f"of the largest magnitude; expected at most {limit:.3g}. No file was written"
                    )
                worst = max(worst, error)
    return worst


def _difference(found: np.ndarray, expected: np.ndarray, least: float) -> float:
    """Relative to the largest magnitude, or ``least`` where that is more.

    Infinite where shapes differ, or one is finite and the other is not.
    """
    finite = np.isfinite(expected)
    if found.shape != expected.shape or not np.array_equal(np.isfinite(found), finite):
        return np.inf
    largest = float(np.abs(expected[finite]).max(initial=least))
    error = float(np.abs(found[finite] - expected[finite]).max(initial=0.0))
    return error / largest if largest else error
