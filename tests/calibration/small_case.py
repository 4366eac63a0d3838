"""A network and samples small enough to run a search beside an independent implementation, step by step."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.networks import PlainVGG, randomised
from unit_fast.calibration.context import CalibrationContext
from unit_fast.calibration.logits import default_logits
from unit_fast.calibration.samples import SampleStore
from unit_fast.capture import capture
from unit_fast.sites import find_sites


class Case(NamedTuple):
    """See :func:`small_case`."""

    model: PlainVGG
    x: Tensor
    y: Tensor
    fit: Tensor
    validation: Tensor


def forward(model: PlainVGG, x: Tensor, bounds: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the activations before they are bounded."""
    activations = []
    for layer in model.features:
        x = layer(x)
        if isinstance(layer, nn.ELU):
            activations.append(x)
            if bounds is not None:
                x = torch.clamp(x, max=bounds[len(activations) - 1].unsqueeze(0).to(x.dtype))
    return model.classifier(x.flatten(1)), activations


def small_case(sureness: float = 1.0) -> Case:
    """Network, samples, labels, and the indices to fit on and to judge by.

    Labels are the model's own on clean samples, so the accuracy starts at 1; logits are centred for all classes and
    times ``sureness``.
    """
    torch.manual_seed(0)
    model = randomised(PlainVGG()).double().requires_grad_(False)
    x = torch.randn(150, 3, 8, 8, dtype=torch.float64)
    model.classifier.bias -= forward(model, x, None)[0].mean(0)
    model.classifier.weight *= sureness
    model.classifier.bias *= sureness
    y = forward(model, x, None)[0].argmax(1)
    return Case(model, x, y, torch.arange(0, 110), torch.arange(110, 150))


def context_of(case: Case, batch_size: int) -> CalibrationContext:
    """What a search is given."""
    model, x, y, fit, validation = case
    graph = capture(model, x[:2])
    return CalibrationContext(
        graph=graph,
        sites=find_sites(graph),
        samples=SampleStore([(x, y)]),
        fit_indices=fit,
        validation_indices=validation,
        granularity="neuron",
        seed=0,
        device=torch.device("cpu"),
        logits=default_logits,
        batch_size=batch_size,
    )
