"""Calibration data that says nothing of what the model is served, found before the work."""

import torch

from unit_fast.calibration.samples import SampleStore
from unit_fast.errors import DataError
from unit_fast.export.flat import FlatGraph
from unit_fast.export.quantization.ranges import BATCH_SIZE, by_name, first_batch

# Integers of an activation: beyond such a ratio of ranges, all that the example holds lies within one step.
_STEPS = 256


def check_samples(graph: FlatGraph, samples: SampleStore) -> None:
    """See that int8 can be fitted to ``samples``.

    Args:
        graph: of the model, with its example.
        samples: the calibration set.

    Raises:
        DataError: the samples do not fit the model, are all alike, or of another range than the example; or a label is
            beyond the classes.
    """
    first = first_batch(graph, samples)
    classes = _classes(graph)
    if classes is not None and samples.labels_given:
        samples.check_labels(classes)
    alike = True
    largest = dict.fromkeys(graph.input_names, 0.0)
    for batch in samples.batches(batch_size=BATCH_SIZE):
        for (name, leaf), reference in zip(by_name(graph.input_names, batch.x).items(), first, strict=True):
            alike = alike and torch.equal(leaf, reference[:1].expand_as(leaf))
            if leaf.is_floating_point() and leaf.numel():
                largest[name] = max(largest[name], leaf.abs().max().item())
    if alike:
        raise DataError(
            f"calibration_data: all {len(samples)} samples are alike, and int8 takes its scales from them; give "
            "samples like those the model is served"
        )
    for (name, found), example in zip(largest.items(), graph.inputs, strict=True):
        usual = example.abs().max().item() if example.is_floating_point() and example.numel() else 0.0
        if usual and found > _STEPS * usual:
            raise DataError(
                f"calibration_data reaches {found:.3g} in {name}, example_input only {usual:.3g}, which would be less "
                f"than one of int8's {_STEPS} steps; scale both as the model is served"
            )


def _classes(graph: FlatGraph) -> int | None:
    """How many classes the first output scores; None where it scores none."""
    output = next(node for node in graph.module.graph.nodes if node.op == "output")
    scores = output.args[0][0].meta.get("val")
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2 or not scores.is_floating_point():
        return None
    return scores.shape[1] if scores.shape[1] > 1 else None
