"""The search of UNIT that spends its tolerance: it presses on all bounds for as long as accuracy lasts.

It differs from the one that only opens (:mod:`unit_fast.calibration.opening`) in this:

- The validation part's accuracy is what is held. Its divergence may be six times that of the other search
  (:mod:`unit_fast.calibration.budget`), which ends it where the model knows the validation part by heart.
- It starts at a divergence of 0.8 times the logarithm of the number of classes (all of that is what an output costs
  that knows nothing), or with every bound at its unit's mean, where that costs less.
- The loss has a second term, cost · mean k. The cost starts when the bounds are first within the tolerance; from then
  on it grows by half with every verdict that is within, and is halved by every one that is not. The rule is that of the
  published search (:mod:`unit_fast.calibration.paper`), in units of each bound's scale.
- No bound goes below its unit's mean: what is pressed further holds nothing down, and others open to make up for it.
- The bounds of a channel also move together, besides each for itself: a network of many layers is not done in 100
  steps otherwise.
- All steps are taken, each smaller than the one before, and the tightest bounds that a verdict found within the
  tolerance are those that are settled at the end.
"""

import warnings
from math import ceil, inf, log, prod
from typing import Any

import torch
from torch import Tensor

from unit_fast.calibration.budget import Budget, Verdict
from unit_fast.calibration.context import CalibrationContext
from unit_fast.calibration.granularity import unit_shape
from unit_fast.calibration.opening import OpeningSearch
from unit_fast.errors import DataError, UnitFastWarning

LEARNING_RATE = 0.1  # scales a step, at the start
_START = 0.8  # of the logarithm of the number of classes
_COST = 0.05  # nats a scale, at the start
_DEARER, _CHEAPER = 1.5, 0.5
_LEAST = 0.0  # scales


class SpendingSearch(OpeningSearch):
    """See the module's text.

    Args:
        context: of the calibration.
        tolerance: accuracy of the validation part to spend, in (0, 1).
        steps: of Adam, None for 100.
        learning_rate: of Adam in units of each bound's scale at the start, None for 0.1.
        batch_size: fit samples a step, None for 128.

    Raises:
        DataError: so few samples for validation that a single one is more than the tolerance, or so little accuracy
            that the tolerance leaves no more than always giving one class has.

    Warns:
        UnitFastWarning: the model gets every sample for validation right, as it does those that it was trained on.
    """

    _lowest_shift = -1.0  # larger steps, and two that add up

    def __init__(
        self,
        context: CalibrationContext,
        tolerance: float,
        steps: int | None,
        learning_rate: float | None,
        batch_size: int | None,
    ) -> None:
        _require_validation(len(context.validation_indices), tolerance)
        self._k_together: dict[str, Tensor] = {}
        self._learning_rate = learning_rate or LEARNING_RATE
        self._cost = 0.0
        self._tightest: dict[str, Tensor] = {}  # k, of the bounds with the least room that were within
        self._least_room = inf
        super().__init__(context, tolerance, steps, self._learning_rate, batch_size)
        self._k_together = self._channels()
        if self._k_together:
            self._optimizer.add_param_group({"params": list(self._k_together.values())})

    def _allowed(self, accuracy: float) -> Budget:
        labels = self._context.samples.labels
        assert labels is not None  # given, or set to the predictions
        of_validation = labels[self._context.validation_indices]
        _require_accuracy(accuracy, self._tolerance, float(of_validation.bincount().max()) / len(of_validation))
        if accuracy == 1 and self._context.samples.labels_given:
            _warn_of_training_samples(len(of_validation))
        return Budget.of_accuracy(self._tolerance, accuracy)

    def _starting_divergence(self) -> float:
        logits = next(self._reference.batches(batch_size=1)).x
        assert isinstance(logits, Tensor)
        return _START * log(logits.shape[1])

    def _channels(self) -> dict[str, Tensor]:
        """What is added to the k of all bounds of a channel, 0, for sites whose bounds are finer than channels."""
        shapes = {site.name: unit_shape(site, "channel") for site in self._context.sites}
        return {
            name: torch.zeros(shapes[name], device=k.device, requires_grad=True)
            for name, k in self._k.items()
            if k.numel() > prod(shapes[name])
        }

    def _k_of(self, name: str) -> Tensor | float:
        return super()._k_of(name) + self._k_together.get(name, 0.0)

    @property
    def finished(self) -> bool:
        """All steps are done."""
        return self.done >= self.total

    def step(self) -> None:
        """One step of Adam, smaller than the one before; every few, the verdict of the validation part."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * (1 - self.done / self.total)
        super().step()

    @torch.no_grad()
    def _project(self) -> None:
        for name, k in self._k.items():
            k.clamp_(min=torch.as_tensor(_LEAST - self._k_together.get(name, 0.0), device=k.device))

    def _room(self) -> Tensor:
        """The mean over sites of the mean k."""
        return torch.stack([torch.as_tensor(self._k_of(name)).mean() for name in self._k]).mean()

    def _cost_of_room(self) -> Tensor | float:
        return self._cost * self._room()

    def _heed(self, verdict: Verdict) -> None:
        super()._heed(verdict)
        within = self._budget.holds(verdict)
        room = float(self._room().detach())
        if within and room < self._least_room:
            self._least_room = room
            self._tightest = {name: torch.as_tensor(self._k_of(name)).detach().clone() for name in self._k}
        if self._cost > 0:
            self._cost *= _DEARER if within else _CHEAPER
        elif within:
            self._cost = _COST

    @torch.no_grad()
    def settle(self) -> None:
        """Shift the tightest bounds that were within the tolerance, or those there are, until all of it is spent."""
        for name, k in self._tightest.items():
            self._k[name].copy_(k)
            if name in self._k_together:
                self._k_together[name].zero_()
        super().settle()

    def state(self) -> dict[str, Any]:
        """See :meth:`Search.state`."""
        together = {name: k.detach() for name, k in self._k_together.items()}
        tightest = {"tightest": self._tightest, "least_room": self._least_room}
        return super().state() | tightest | {"k_together": together, "cost": self._cost}

    def restore(self, state: dict[str, Any]) -> None:
        """See :meth:`Search.restore`."""
        super().restore(state)
        self._cost, self._tightest, self._least_room = (state[key] for key in ("cost", "tightest", "least_room"))
        with torch.no_grad():
            for name, k in self._k_together.items():
                k.copy_(state["k_together"][name])


def _require_validation(count: int, tolerance: float) -> None:
    least = ceil(1 / tolerance - 1e-9)
    if count < least:
        raise DataError(
            f"of {count} samples for validation each is {1 / count:.1%} of the accuracy, so a tolerance of "
            f"{tolerance:g} cannot be held by it: expected at least {least}; give {5 * least} samples in all (a fifth "
            "of each class is for validation), allow more, or hold the divergence instead"
        )


def _require_accuracy(accuracy: float, tolerance: float, of_one_class: float) -> None:
    if accuracy - tolerance <= of_one_class:
        raise DataError(
            f"without bounds the model gets {accuracy:.1%} of the samples for validation right; a tolerance of "
            f"{tolerance:g} leaves no more than the {of_one_class:.1%} that always giving one class gets: are the "
            "labels and the preprocessing those of its training? If so allow less, or hold the divergence instead"
        )


def _warn_of_training_samples(count: int) -> None:
    warnings.warn(
        f"the model gets all {count} samples for validation right; if it was trained on them, more accuracy than is "
        "tolerated may go on others: give samples that it was not trained on, or hold the divergence instead",
        UnitFastWarning,
        stacklevel=8,  # of whoever called calibrate
    )
