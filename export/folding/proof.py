"""Is the folded graph the graph it was made of? Decided in float64, where rounding leaves nothing to excuse."""

import logging

import torch

from unit_fast.errors import ParityError
from unit_fast.export.flat import FlatGraph, evaluate_sites, in_dtype
from unit_fast.export.folding.wanted import fold_for
from unit_fast.export.forms.choice import Choice
from unit_fast.export.reference import widened

# Of the largest magnitude. 1e-12 is what small networks give; a wrong factor is wrong by far more.
_TOLERANCE = 1e-8

_logger = logging.getLogger(__name__)


def prove_folding(graph: FlatGraph, choice: Choice) -> None:
    """Fold ``graph`` in float64 and compare its outputs and activations on inputs at which bounds bind.

    Raises:
        ParityError: they differ; names site or output and the error.
    """
    exact = in_dtype(graph, torch.float64)
    inputs = widened(graph.batch(7, 10.0, noise=True))
    folded = fold_for(exact, choice)
    try:
        outputs, _, activations = evaluate_sites(exact, inputs)
        found, _, scaled = evaluate_sites(folded.graph, inputs)
    except RuntimeError as error:
        _logger.info("folding was not compared in float64, in which the graph does not run: %s", error)
        return
    pairs = [
        (f"output {name}", ours, theirs) for name, ours, theirs in zip(graph.output_names, found, outputs, strict=True)
    ]
    for site, outcome in folded.sites.items():
        scale = 1.0 if outcome.scale is None else outcome.scale
        pairs.append((f"site {site}", scaled[site] * scale, activations[site]))
    for what, ours, theirs in pairs:
        if not theirs.is_floating_point() or not theirs.numel():
            continue
        largest = theirs.abs().max().item()
        difference = (ours - theirs).abs().max().item()
        if not difference <= _TOLERANCE * max(largest, 1e-30):
            raise ParityError(
                f"{what}: folding changes it by {difference:.3g} of {largest:.3g}; expected none. No file was written; "
                'form="min" does without folding'
            )
