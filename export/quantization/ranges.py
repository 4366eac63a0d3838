"""What every tensor's values range over on calibration data, read from the float32 file a mini-batch at a time."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from unit_fast.calibration.inputs import Inputs, input_leaves
from unit_fast.calibration.samples import SampleStore
from unit_fast.errors import DataError
from unit_fast.export.flat import FlatGraph
from unit_fast.export.quantization.scales import Float64
from unit_fast.export.session import OnnxRuntimeModel

BATCH_SIZE = 32


@dataclass(frozen=True)
class Range:
    """Smallest and largest value seen."""

    lower: float
    upper: float


def collect_ranges(plain: Path, names: Sequence[str], samples: SampleStore, watched: Path) -> dict[str, Range]:
    """Run the float32 file ``plain`` on all samples.

    Args:
        plain: an exported file.
        names: of its tensors.
        samples: the calibration set.
        watched: where a copy of the file that gives out the ranges goes.

    Raises:
        DataError: the samples do not fit the model, or drive a tensor to infinity.
    """
    _watch(plain, watched, names)
    model = OnnxRuntimeModel(watched, threads=1)
    lower, upper = dict.fromkeys(names, np.inf), dict.fromkeys(names, -np.inf)
    for batch in samples.batches(batch_size=BATCH_SIZE):
        found = model.run(feed(model, batch.x))
        for name in names:
            lower[name] = min(lower[name], found[f"{name}/smallest"].item())
            upper[name] = max(upper[name], found[f"{name}/largest"].item())
            if not (np.isfinite(lower[name]) and np.isfinite(upper[name])):
                raise DataError(
                    f"calibration_data drives the tensor {name} to infinity; expected samples like those the model is "
                    "served"
                )
    return {name: Range(lower[name], upper[name]) for name in names}


def collect_means(
    plain: Path, wanted: Collection[tuple[str, int]], samples: SampleStore, watched: Path
) -> dict[tuple[str, int], Float64]:
    """The mean of tensors by channel, over all samples and positions.

    Args:
        plain: an exported float32 file.
        wanted: names of tensors, each with which of its axes are channels: layers may read one along several.
        samples: the calibration set.
        watched: where a copy of the file that gives out the means goes.
    """
    found = onnx.load(plain, load_external_data=False)
    known = [*found.graph.input, *found.graph.value_info, *found.graph.output]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in known}
    results = {(name, axis): f"{name}/mean along {axis}" for name, axis in wanted}
    for (name, axis), result in results.items():
        others = np.asarray([other for other in range(ranks[name]) if other != axis % ranks[name]], np.int64)
        found.graph.initializer.append(numpy_helper.from_array(others, f"{result}/others"))
        found.graph.node.append(helper.make_node("ReduceMean", [name, f"{result}/others"], [result], keepdims=0))
        found.graph.output.append(helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None))
    onnx.save(found, watched)
    model = OnnxRuntimeModel(watched, threads=1)
    means: dict[tuple[str, int], Float64] = dict.fromkeys(results, np.zeros(()))
    for batch in samples.batches(batch_size=BATCH_SIZE):
        given = model.run(feed(model, batch.x))
        for key, result in results.items():
            means[key] = means[key] + given[result].double().numpy() * (len(batch.y) / len(samples))
    return means


def feed(model: OnnxRuntimeModel, inputs: Inputs) -> dict[str, np.ndarray]:
    """Inputs by the file's names; :func:`first_batch` has seen that they fit."""
    leaves = by_name(model.input_names, inputs)
    return {name: leaf.detach().cpu().contiguous().numpy() for name, leaf in leaves.items()}


def first_batch(graph: FlatGraph, samples: SampleStore) -> tuple[Tensor, ...]:
    """The inputs of ``graph`` for the first mini-batch of samples.

    Raises:
        DataError: there are more or fewer inputs than the model takes, or others, or of other shapes or dtypes.
    """
    leaves = by_name(graph.input_names, next(samples.batches(batch_size=BATCH_SIZE)).x)
    for (name, leaf), example, dynamic in zip(leaves.items(), graph.inputs, graph.dynamic, strict=True):
        fits = leaf.ndim == example.ndim and all(
            found == expected or axis in dynamic
            for axis, (found, expected) in enumerate(zip(leaf.shape, example.shape, strict=True))
        )
        if not fits or leaf.dtype != example.dtype:
            raise DataError(
                f"calibration_data gives {name} in the shape {tuple(leaf.shape)} and {leaf.dtype}; the model takes "
                f"(N, {', '.join(map(str, example.shape[1:]))}) and {example.dtype}"
            )
    return tuple(leaves.values())


def by_name(names: Sequence[str], inputs: Inputs) -> dict[str, Tensor]:
    """Inputs in the order of ``names``.

    Raises:
        DataError: there are more or fewer of them, or others, than the model takes.
    """
    leaves = list(input_leaves(inputs).values())
    given = list(inputs) if isinstance(inputs, dict) else list(names)
    if len(leaves) != len(names) or set(given) != set(names):
        raise DataError(
            f"calibration_data gives the inputs {', '.join(input_leaves(inputs))}; the model takes {', '.join(names)}"
        )
    found = dict(zip(given, leaves, strict=True))
    return {name: found[name] for name in names}


def _watch(plain: Path, watched: Path, names: Sequence[str]) -> None:
    """A copy of ``plain`` that gives out two numbers a tensor: whole activations of a batch would fill the memory."""
    model = onnx.load(plain, load_external_data=False)
    for name in names:
        for operator, result in (("ReduceMin", f"{name}/smallest"), ("ReduceMax", f"{name}/largest")):
            model.graph.node.append(helper.make_node(operator, [name], [result], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, []))
    onnx.save(model, watched)
