"""UNIT's search as published: Cheng et al., "UNIT: Backdoor Mitigation via Automated Neural Distribution Tightening"
(ECCV 2024, arXiv 2407.11372), section 4 and the authors' code, step for step.

The one liberty is memory: a step over the whole fit set is accumulated over mini-batches, to the same gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F

from unit_fast.calibration.bounded import BoundedGraph
from unit_fast.calibration.context import CalibrationContext
from unit_fast.calibration.estimators import MeanStd
from unit_fast.calibration.minibatches import MiniBatches
from unit_fast.calibration.search import Search

WIDTH = 4.0  # standard deviations above the mean at the start
_COST = 1e-3
_COST_UP = 2.0
_COST_DOWN = 2.0**1.5
_PATIENCE = 5
_BETAS = (0.5, 0.9)


class PaperSearch(Search):
    """Cross-entropy + cost · Σ over sites of mean(bound), by Adam, the cost steered by the validation accuracy.

    Args:
        context: of the calibration.
        tolerance: validation accuracy that may be lost, in [0, 1].
        steps: of Adam.
        learning_rate: of Adam, in units of the activations.
        batch_size: samples a step; None takes the whole fit set, as the authors run it.
    """

    def __init__(
        self, context: CalibrationContext, tolerance: float, steps: int, learning_rate: float, batch_size: int | None
    ) -> None:
        self.total = steps
        self._context = context
        self._graph = BoundedGraph(context)
        size = len(context.fit_indices) if batch_size is None else batch_size
        self._batches = MiniBatches(context.fit_indices, size, context.seed)
        self._bounds = {name: bound.requires_grad_() for name, bound in MeanStd(WIDTH).fit(context).items()}
        self._start = self._tightness_sum()
        self._optimizer = torch.optim.Adam(list(self._bounds.values()), lr=learning_rate, betas=_BETAS)
        self._threshold = context.accuracy(context.graph, context.validation_indices) - tolerance
        self._tolerance = tolerance
        self._best_sum = float("inf")
        self._cost = _COST
        self._up = self._down = self._reset = 0

    def step(self) -> None:
        """One step of Adam, then the verdict of the validation part and the cost of the next."""
        self._optimizer.zero_grad()
        before = {name: bound.detach().clamp(min=0).clone() for name, bound in self._bounds.items()}
        sum_before = self._accumulate_gradients()
        self._optimizer.step()
        self.validation_accuracy = self._accuracy()
        passed = self.validation_accuracy >= self._threshold
        # As published: the accuracy is of the bounds after the step, what is kept are the bounds before it.
        if passed and sum_before < self._best_sum:
            self._best_sum = sum_before
            self.best = before
        self._steer(passed)

    def _accumulate_gradients(self) -> float:
        indices = self._batches.at(self.done)
        for batch in self._context.samples.batches(indices, self._context.batch_size):
            clamped = {name: bound.clamp(min=0) for name, bound in self._bounds.items()}
            loss = F.cross_entropy(self._graph(clamped, batch.x), batch.y, reduction="sum") / len(indices)
            loss.backward()  # type: ignore[no-untyped-call]
        total = torch.stack([bound.clamp(min=0).mean() for bound in self._bounds.values()]).sum()
        (self._cost * total).backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    def _accuracy(self) -> float:
        clamped = {name: bound.detach().clamp(min=0) for name, bound in self._bounds.items()}
        correct = 0
        with torch.no_grad():
            for batch in self._context.samples.batches(self._context.validation_indices, self._context.batch_size):
                correct += int((self._graph(clamped, batch.x).argmax(1) == batch.y).sum())
        return correct / len(self._context.validation_indices)

    def _steer(self, passed: bool) -> None:
        if passed and self._cost < _COST:
            self._reset += 1
            if self._reset >= _PATIENCE:
                self._cost = _COST
                self._up = self._down = 0
        else:
            self._reset = 0
        self._up, self._down = (self._up + 1, 0) if passed else (0, self._down + 1)
        if self._up >= _PATIENCE:
            self._up = 0
            self._cost *= _COST_UP
        if self._down >= _PATIENCE:
            self._down = 0
            self._cost /= _COST_DOWN

    def _tightness_sum(self) -> float:
        return float(sum(bound.detach().clamp(min=0).mean() for bound in self._bounds.values()))

    def tightness(self) -> float:
        """1 − (Σ mean(bound) now / at the start)."""
        return 1 - self._tightness_sum() / self._start if self._start > 0 else 0.0

    def failure(self) -> str:
        """Says that no step passed, and what may help."""
        return (
            f"none of {self.total} steps kept the validation accuracy within the tolerance {self._tolerance} (at "
            f"least {self._threshold:.2%} was asked for, {self.validation_accuracy:.2%} came last); allow a larger "
            "tolerance, give more clean samples, or take the default recipe"
        )

    def state(self) -> dict[str, Any]:
        """See :meth:`Search.state`."""
        return {
            "bounds": {name: bound.detach() for name, bound in self._bounds.items()},
            "optimizer": self._optimizer.state_dict(),
            "steering": [self._cost, self._up, self._down, self._reset, self._best_sum],
            "validation_accuracy": self.validation_accuracy,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See :meth:`Search.restore`."""
        with torch.no_grad():
            for name, bound in self._bounds.items():
                bound.copy_(state["bounds"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._cost, self._up, self._down, self._reset, self._best_sum = state["steering"]
        self.validation_accuracy = state["validation_accuracy"]
