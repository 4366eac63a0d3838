"""The first look at the clean samples: what the model says of them, and how its activations lie."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from unit_fast.bounds import CleanActivations
from unit_fast.calibration.finite import check_activations
from unit_fast.calibration.granularity import Granularity, from_units, to_units
from unit_fast.calibration.histogram import GrowingHistogram
from unit_fast.calibration.inputs import call_model
from unit_fast.calibration.logits import check_logits
from unit_fast.calibration.samples import SampleStore
from unit_fast.capture import hint_at_dicts
from unit_fast.errors import DataError
from unit_fast.sites import Site, expose_sites

# Of a mini-batch, whole samples are taken into a site's histogram up to about this many activations: a picture needs no
# more, and binning all of them took as long as the model itself.
_HISTOGRAM_SHARE = 2**16


class Survey(NamedTuple):
    """What one pass over all samples tells."""

    predictions: Tensor
    """(N,) int64 on the CPU: the model's own classes."""
    num_classes: int
    """As the logits have them."""
    clean: dict[str, CleanActivations]
    """By site, over all samples (histograms over a part of them)."""


@torch.no_grad()
def survey(
    graph: fx.GraphModule,
    sites: Sequence[Site],
    samples: SampleStore,
    granularity: Granularity,
    logits: Callable[[Any], Tensor],
    batch_size: int,
) -> Survey:
    """Run the plain graph once over all samples.

    Raises:
        DataError: the model does not run on the samples, its output has no class scores, or activations or class scores
            are NaN or infinite.
    """
    exposed = expose_sites(graph, sites)
    predictions: list[Tensor] = []
    classes = 0
    maxima: dict[str, Tensor] = {}
    histograms = {site.name: GrowingHistogram() for site in sites}
    for start in range(0, len(samples), batch_size):
        rows = torch.arange(start, min(start + batch_size, len(samples)))
        x = samples.read(rows).x
        try:
            output, activations = call_model(exposed, x)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            shapes = ", ".join(f"{name} {shape}" for name, shape in samples.input_shapes.items())
            raise DataError(
                f"the model does not run on the calibration samples ({shapes}): {error}; give samples of the size and "
                f"dtype that the model is served{hint_at_dicts(x)}"
            ) from error
        check_activations(activations, rows, samples)
        scores = check_logits(logits(output))
        if not bool(scores.isfinite().all()):
            raise DataError(f"{int((~scores.isfinite()).sum())} of the model's class scores are NaN or infinite")
        classes = scores.shape[1]
        predictions.append(scores.argmax(1).cpu())
        for site in sites:
            activation = activations[site.name]
            largest = to_units(activation, site, granularity).amax(0)
            before = maxima.get(site.name)
            maxima[site.name] = largest if before is None else torch.maximum(before, largest)
            part = activation[:: max(1, activation.numel() // _HISTOGRAM_SHARE)]
            histograms[site.name].update(part, float(part.min()), float(part.max()))
    clean = {
        site.name: CleanActivations(
            histograms[site.name].counts,
            histograms[site.name].edges,
            from_units(maxima[site.name].to("cpu", torch.float32), site, granularity),
        )
        for site in sites
    }
    return Survey(torch.cat(predictions), classes, clean)
