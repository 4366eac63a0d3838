"""Stop at the first activation that is no number: a bound fitted on one would be none."""

from collections.abc import Mapping

import torch
from torch import Tensor

from unit_fast.calibration.samples import SampleStore
from unit_fast.errors import DataError


def check_activations(activations: Mapping[str, Tensor], rows: Tensor, samples: SampleStore) -> None:
    """Check the activations, by site (N, …), of the samples ``rows`` (N,).

    Raises:
        DataError: some are NaN or infinite; names the site, how many, and the first sample.
    """
    # A sum that is finite has finite terms only; one transfer from the device for all sites.
    sums = torch.stack([activation.sum(dtype=torch.float32) for activation in activations.values()])
    for name, suspect in zip(activations, (~sums.isfinite()).tolist(), strict=True):
        if not suspect:
            continue
        bad = ~activations[name].isfinite().flatten(1)
        if bool(bad.any()):
            sample = int(rows[int(bad.any(1).nonzero()[0])])
            raise DataError(
                f"site {name}: {int(bad.sum())} of {bad.numel()} activations of a mini-batch are NaN or infinite, the "
                f"first at {samples.where(sample)}; the inputs are finite, so look at the model's weights and dtype"
            )
