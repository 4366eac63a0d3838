"""The search that spends its tolerance, compared step by step with an independent implementation of a few lines."""

from itertools import pairwise
from math import log
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.calibration.small_case import Case, context_of, forward, small_case
from unit_fast.calibration.augment import augment
from unit_fast.calibration.minibatches import MiniBatches
from unit_fast.calibration.spending import SpendingSearch

pytestmark = pytest.mark.filterwarnings("ignore:the model gets all")  # its labels are what it says

TOLERANCE = 0.2
STEPS = 100
SURENESS = 80.0  # so that tight bounds cost more than the search starts at, and few changed decisions all it may cost


class Independent(NamedTuple):
    """Bounds after every step, the cost after every verdict, the scales, and the tightest bounds that were within.

    Also what alone was broken by a verdict, of "accuracy" and "divergence".
    """

    bounds: list[list[Tensor]]
    costs: list[float]
    broken: set[str]
    scale: list[Tensor]
    tightest: list[Tensor]


def divergence_of(case: Case, bounds: list[Tensor]) -> float:
    """Of the validation part from the original outputs: the mean of all samples but the worst."""
    wanted, found = (forward(case.model, case.x[case.validation], b)[0].log_softmax(1) for b in (None, bounds))
    of_each = F.kl_div(found, wanted, log_target=True, reduction="none").sum(1).sort().values
    return float(of_each[:-1].mean().detach())


def independent(case: Case, start: float) -> Independent:
    """One run of the algorithm as its module's text has it."""
    model, x, y, fit, validation = case
    activations = forward(model, x[fit], None)[1]
    mean = [a.mean(0) for a in activations]
    deviation = [a.std(0) for a in activations]
    scale = [(d**2 + 0.01 * (d**2).mean()).sqrt() for d in deviation]
    own = [torch.full_like(m, start).requires_grad_() for m in mean]
    channel = [torch.zeros(m.shape[0], 1, 1, dtype=m.dtype).requires_grad_() for m in mean]
    adam = torch.optim.Adam([*own, *channel], betas=(0.5, 0.9))
    batches = MiniBatches(fit, 128, 0)

    def bounds() -> list[Tensor]:
        return [m + (k + c) * s for m, k, c, s in zip(mean, own, channel, scale, strict=True)]

    def right(bounds: list[Tensor] | None) -> int:
        return int((forward(model, x[validation], bounds)[0].argmax(1) == y[validation]).sum())

    def within(bounds: list[Tensor]) -> bool:
        accurate = right(bounds) / len(validation) >= right(None) / len(validation) - TOLERANCE - 1e-9
        close = divergence_of(case, bounds) <= 6 * TOLERANCE * log(2)
        if accurate != close:
            broken.add("divergence" if accurate else "accuracy")
        return accurate and close

    found, costs, cost, tightest = [], [], 0.0, []
    broken: set[str] = set()
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = 0.1 * (1 - step / STEPS)
        images = augment(x[batches.at(step)], torch.Generator().manual_seed(step))
        assert isinstance(images, Tensor)
        wanted = forward(model, images, None)[0].log_softmax(1)
        logits = forward(model, images, bounds())[0]
        divergence = F.kl_div(logits.log_softmax(1), wanted, log_target=True, reduction="batchmean")
        room = sum((k + c).mean() for k, c in zip(own, channel, strict=True)) / len(own)
        adam.zero_grad()
        (divergence + cost * room).backward()
        adam.step()
        with torch.no_grad():
            for k, c in zip(own, channel, strict=True):
                k.copy_(torch.maximum(k, -c))
            found.append(bounds())
            if step % 5 == 4:
                holds = within(bounds())
                cost = cost * (1.5 if holds else 0.5) if cost > 0 else 0.05 * holds
                costs.append(cost)
                room = sum((k + c).mean() for k, c in zip(own, channel, strict=True))
                tightest += [(float(room), bounds())] if holds else []
    return Independent(found, costs, broken, scale, min(tightest, key=lambda entry: entry[0])[1])


@pytest.mark.parametrize("ends", ["accuracy", "divergence"])
def test_every_step_equals_an_independent_implementation(ends):
    case = small_case(SURENESS)
    if ends == "divergence":  # of most labels that are wrong anyway accuracy does not see decisions change
        case.y[::3] = (case.y[::3] + 1) % 10
    context = context_of(case, 32)
    search = SpendingSearch(context, TOLERANCE, STEPS, None, None)
    expected, costs, broken, scale, tightest = independent(case, context.notes["start"])
    for step in range(STEPS):
        search.step()
        search.done += 1
        for bound, wanted in zip(search._bounds(0.0).values(), expected[step], strict=True):
            torch.testing.assert_close(bound.detach().double(), wanted, rtol=1e-3, atol=1e-3, msg=f"step {step}")
        if step % 5 == 4:
            assert search.state()["cost"] == pytest.approx(costs[step // 5]), f"step {step}"
    assert search.finished
    search.settle()
    shift = context.notes["shift"]
    assert search.best is not None
    for bound, wanted, unit in zip(search.best.values(), tightest, scale, strict=True):
        torch.testing.assert_close(bound.detach().double(), wanted + shift * unit, rtol=1e-3, atol=1e-3)
    assert ends in broken, "the run must bring what it is for"
    assert any(after > before > 0 for before, after in pairwise(costs)), "the run must raise the cost"
    assert any(after < before for before, after in pairwise(costs)), "the run must lower the cost"


def test_it_starts_at_most_of_what_knowing_nothing_costs():
    case = small_case(SURENESS)
    search = SpendingSearch(context_of(case, 32), TOLERANCE, STEPS, None, None)

    def divergence(shift: float) -> float:
        return divergence_of(case, list(search._bounds(shift).values()))

    classes = forward(case.model, case.x[:1], None)[0].shape[1]
    assert divergence(0.0) <= 0.8 * log(classes) < divergence(-0.1)
