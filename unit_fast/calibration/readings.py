"""What the clamps of a sanitised graph take away from clean samples."""

from collections.abc import Iterable

import torch
from torch import fx

from unit_fast.bounds import CleanReadings
from unit_fast.calibration.inputs import Inputs, call_model
from unit_fast.errors import DataError
from unit_fast.fusion.read_clamps import measure_excess


@torch.no_grad()
def clean_readings(sanitised: fx.GraphModule, batches: Iterable[Inputs]) -> CleanReadings:
    """Read every clamp on clean samples.

    Args:
        sanitised: the graph with its bounds.
        batches: inputs on the graph's device; samples the bounds were not fitted on, or everything looks too usual.

    Raises:
        DataError: there are no samples.
    """
    reading = measure_excess(sanitised)
    counts, excess = [], []
    for x in batches:
        _, counted, furthest = call_model(reading, x)
        counts.append(counted.cpu())
        excess.append(furthest.cpu())
    if not counts:
        raise DataError("there are no clean samples to learn from what is usual; is the iterable already used up?")
    return CleanReadings(torch.cat(counts), torch.cat(excess))
