"""The published search, compared step by step with an independent implementation of a few lines."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.calibration.small_case import context_of, forward, small_case
from tests.networks import PlainVGG
from unit_fast.calibration.paper import PaperSearch

LEARNING_RATE = 0.01  # large, so that the accuracy breaks and recovers and the cost goes both ways
TOLERANCE = 0.1


@dataclass
class Published:
    """One run of the algorithm as the paper and its code have it: everything in one batch."""

    bounds: list[list[Tensor]] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    best: list[Tensor] | None = None


def published(model: PlainVGG, fit: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], steps: int) -> Published:
    run = Published()
    with torch.no_grad():
        activations = forward(model, fit[0], None)[1]
        threshold = (
            forward(model, validation[0], None)[0].argmax(1) == validation[1]
        ).double().mean().item() - TOLERANCE
    params = [(a.mean(0) + 4 * a.std(0)).float().requires_grad_() for a in activations]
    adam = torch.optim.Adam(params, lr=LEARNING_RATE, betas=(0.5, 0.9))
    cost, best_sum, reset, up, down = 1e-3, float("inf"), 0, 0, 0
    for _ in range(steps):
        adam.zero_grad()
        clamped = [p.clamp(min=0) for p in params]
        total = sum(p.mean() for p in clamped)
        (F.cross_entropy(forward(model, fit[0], clamped)[0], fit[1]) + cost * total).backward()
        adam.step()
        with torch.no_grad():
            now = [p.clamp(min=0).clone() for p in params]
            accuracy = (forward(model, validation[0], now)[0].argmax(1) == validation[1]).double().mean().item()
        good = accuracy >= threshold
        if good and float(total.detach()) < best_sum:
            best_sum, run.best = float(total.detach()), [c.detach().clone() for c in clamped]
        if cost < 1e-3 and good:
            reset += 1
            if reset >= 5:
                cost, up, down = 1e-3, 0, 0
        else:
            reset = 0
        up, down = (up + 1, 0) if good else (0, down + 1)
        if up >= 5:
            up, cost = 0, cost * 2
        if down >= 5:
            down, cost = 0, cost / 2**1.5
        run.bounds.append(now)
        run.accuracies.append(accuracy)
        run.costs.append(cost)
    return run


@pytest.fixture(scope="module")
def case():
    return small_case()


def test_every_step_equals_the_published_algorithm(case):
    model, x, y, fit, validation = case
    steps = 160
    expected = published(model, (x[fit], y[fit]), (x[validation], y[validation]), steps)
    # Memory is one mini-batch of 32 here, the published run has all 110 samples in one: the result is the same.
    search = PaperSearch(context_of(case, 32), TOLERANCE, steps, LEARNING_RATE, None)
    for step in range(steps):
        search.step()
        search.done += 1
        assert search.validation_accuracy == pytest.approx(expected.accuracies[step]), f"step {step}"
        assert search._cost == pytest.approx(expected.costs[step]), f"step {step}"
        for found, wanted in zip(search._bounds.values(), expected.bounds[step], strict=True):
            torch.testing.assert_close(found.detach().clamp(min=0), wanted, rtol=1e-4, atol=1e-5, msg=f"step {step}")
    assert search.best is not None
    for found, wanted in zip(search.best.values(), expected.best, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    pairs = list(pairwise(expected.costs))
    assert any(after == 2 * before for before, after in pairs), "the run must raise the cost"
    assert any(after < before for before, after in pairs), "the run must lower the cost"
    assert any(before < after == 1e-3 for before, after in pairs), "the run must reset the cost"


def test_mini_batches_go_through_the_fit_set(case):
    context = context_of(case, 32)
    search = PaperSearch(context, TOLERANCE, 8, LEARNING_RATE, 55)
    first, second = search._batches.at(0), search._batches.at(1)
    assert sorted(torch.cat([first, second]).tolist()) == context.fit_indices.tolist()
    search.step()
    assert 0 < search.tightness() < 1
