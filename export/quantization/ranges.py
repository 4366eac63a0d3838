"""What every tensor's values range over on calibration data, read from the float32 file a mini-batch at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from unit_fast.calibration.inputs import Inputs, input_leaves
from unit_fast.calibration.samples import SampleStore
from unit_fast.errors import DataError
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


def feed(model: OnnxRuntimeModel, inputs: Inputs) -> dict[str, np.ndarray]:
    """Inputs by the file's names.

    Raises:
        DataError: there are more or fewer of them, or others, than the model takes.
    """
    leaves = input_leaves(inputs)
    names = list(inputs) if isinstance(inputs, dict) else list(model.input_names)
    if len(leaves) != len(model.input_names) or set(names) != set(model.input_names):
        raise DataError(
            f"calibration_data gives the inputs {', '.join(leaves)}; the model takes {', '.join(model.input_names)}"
        )
    return {name: leaf.detach().cpu().contiguous().numpy() for name, leaf in zip(names, leaves.values(), strict=True)}


def _watch(plain: Path, watched: Path, names: Sequence[str]) -> None:
    """A copy of ``plain`` that gives out two numbers a tensor: whole activations of a batch would fill the memory."""
    model = onnx.load(plain, load_external_data=False)
    for name in names:
        for operator, result in (("ReduceMin", f"{name}/smallest"), ("ReduceMax", f"{name}/largest")):
            model.graph.node.append(helper.make_node(operator, [name], [result], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, []))
    onnx.save(model, watched)
