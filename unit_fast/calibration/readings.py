"""What the clamps of a sanitised graph take away from clean samples."""

from collections.abc import Iterable

import torch
from torch import fx

from unit_fast.bounds import CleanReadings
from unit_fast.calibration.inputs import Inputs, call_model, input_leaves
from unit_fast.errors import DataError
from unit_fast.fusion.read_clamps import measure_excess


@torch.no_grad()
def clean_readings(sanitised: fx.GraphModule, batches: Iterable[Inputs]) -> CleanReadings:
    """Read every clamp on clean samples.

    Args:
        sanitised: the graph with its bounds.
        batches: inputs on the graph's device; samples the bounds were not fitted on, or everything looks too usual.

    Raises:
        DataError: there are no samples, the model does not take them, or they lead to NaN or infinite activations.
    """
    reading = measure_excess(sanitised)
    counts, excess = [], []
    for number, x in enumerate(batches):
        try:
            _, counted, furthest = call_model(reading, x)
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(leaf.shape)}" for name, leaf in input_leaves(x).items())
            raise DataError(f"batch {number}: the model does not run on {shapes}: {error}") from error
        bad = ~furthest.isfinite()
        if bool(bad.any()):
            raise DataError(
                f"batch {number}, sample {int(bad.any(1).nonzero()[0])}: its activations are NaN or infinite, so it "
                "cannot tell what is usual; remove the sample, or look at the model's weights and dtype"
            )
        counts.append(counted.cpu())
        excess.append(furthest.cpu())
    if not counts:
        raise DataError("there are no clean samples to learn from what is usual; is the iterable already used up?")
    return CleanReadings(torch.cat(counts), torch.cat(excess))
