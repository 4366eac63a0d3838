"""The default search of UNIT: start so tight that the model suffers, then open only what clean data asks for.

The published search starts wide and tightens while clean accuracy lasts. What it leaves is the room that clean data
never used, and a trigger fits in there. This one comes from the other side: every bound starts at the same number of
standard deviations, too low to live with, and rises only by the gradient of the divergence from the original model's
outputs. Bounds that clean data does not press against stay where they are, and the trigger stays out.

1. One bound is mean + k · scale of its unit over the fit part, where scale² = std² + (0.1 · rms of the site's std)²,
   so that units that hardly ever move have room to. One k for all is found at which the divergence of the validation
   part is about 30 times what is tolerated.
2. Adam on each k, in units of the scale, lowers KL(original ‖ sanitised) on mini-batches of the fit part, shifted and
   mixed (:mod:`unit_fast.calibration.augment`), until the validation part is within what is tolerated. There is no
   other term in the loss, and labels are not used.
3. One shift of all k brings the divergence of the validation part to just what is tolerated
   (:mod:`unit_fast.calibration.budget`).

The worst sample of the validation part is left out of the mean divergence: of twenty samples, one that the model was
unsure of anyway would otherwise decide for all.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unit_fast.calibration.augment import augment
from unit_fast.calibration.bounded import BoundedGraph
from unit_fast.calibration.budget import Budget, Verdict
from unit_fast.calibration.context import CalibrationContext
from unit_fast.calibration.estimators import observe_moments
from unit_fast.calibration.granularity import from_units
from unit_fast.calibration.inputs import call_model
from unit_fast.calibration.minibatches import MiniBatches
from unit_fast.calibration.paper import WIDTH
from unit_fast.calibration.samples import SampleStore
from unit_fast.calibration.search import Search

STEPS = 100  # at most; traffic sign VGGs were done in 30 to 60, a ResNet-20 on CIFAR-10 took them all
LEARNING_RATE = 0.05  # scales a step
BATCH_SIZE = 128
_BETAS = (0.5, 0.9)  # as published
_START = 30.0  # times the tolerated divergence
_FLOOR = 0.1  # of the site's rms deviation
_JUDGE_EVERY = 5  # steps: the verdict of the validation part costs as much as a step
_HALVINGS = 6  # of an interval 3 scales wide: to within 0.05 scales
_WIDEST = 2.0**16  # scales; nothing binds there


class OpeningSearch(Search):
    """See the module's text.

    Args:
        context: of the calibration.
        tolerance: share of decisions that may change on clean data, in (0, 1).
        steps: of Adam at most, None for 100.
        learning_rate: of Adam in units of each bound's scale, None for 0.05.
        batch_size: fit samples a step, None for 128.
    """

    _lowest_shift = -0.5  # scales: by how much a few steps may have opened too far

    def __init__(
        self,
        context: CalibrationContext,
        tolerance: float,
        steps: int | None,
        learning_rate: float | None,
        batch_size: int | None,
    ) -> None:
        self.total = steps or STEPS
        self._context = context
        self._graph = BoundedGraph(context)
        self._tolerance = tolerance
        self._batches = MiniBatches(context.fit_indices, batch_size or BATCH_SIZE, context.seed)
        self._k: dict[str, Tensor] = {}
        self._mean, self._scale, self._widest_mean = _spread(context)
        self._reference = SampleStore(self._original_logits(), context.device)
        self._verdict: Verdict | None = None  # of the bounds when they were last judged
        self._budget = self._allowed(context.accuracy(context.graph, context.validation_indices))
        tight = self._starting_divergence()
        start = self._smallest(lambda k: self._judge(k).divergence <= tight, 0.0, 3.0)
        self._k = {name: torch.full_like(mean, start).requires_grad_() for name, mean in self._mean.items()}
        self._optimizer = torch.optim.Adam(self._k.values(), lr=learning_rate or LEARNING_RATE, betas=_BETAS)
        context.notes["start"] = start

    def _allowed(self, accuracy: float) -> Budget:
        """What may be spent by a model with ``accuracy`` on the validation part."""
        return Budget.of_divergence(self._tolerance, accuracy)

    def _starting_divergence(self) -> float:
        """How tight to begin, in nats of the validation part."""
        return _START * self._budget.divergence

    def step(self) -> None:
        """One step of Adam; every few, the verdict of the validation part."""
        batch = self._context.samples.read(self._batches.at(self.done))
        generator = torch.Generator().manual_seed(self._context.seed * 1_000_003 + self.done)
        x = augment(batch.x, generator)
        with torch.no_grad():
            original = self._context.logits(call_model(self._context.graph, x))
        self._optimizer.zero_grad()
        loss = divergence(original, self._graph(self._bounds(0.0), x)).mean() + self._cost_of_room()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._project()
        if (self.done + 1) % _JUDGE_EVERY == 0:
            self._heed(self._judge(0.0))

    def _project(self) -> None:  # nothing is in the way of bounds that only open
        """Bring k back to where it may be."""

    def _cost_of_room(self) -> Tensor | float:
        """What is added to the divergence for how far the bounds are open: nothing."""
        return 0.0

    def _heed(self, verdict: Verdict) -> None:
        """Take note of what the validation part says of the bounds as they are."""
        self._verdict, self.validation_accuracy = verdict, verdict.accuracy

    @property
    def finished(self) -> bool:
        """All steps are done, or the bounds are within what is tolerated, so that nothing has to open further."""
        return self.done >= self.total or (self._verdict is not None and self._budget.holds(self._verdict))

    def settle(self) -> None:
        """Shift all k alike until the validation part is at what is tolerated."""
        shift = self._smallest(lambda shift: self._budget.holds(self._judge(shift)), self._lowest_shift, 1.0)
        verdict = self._judge(shift)
        self.best = self._bounds(shift) if self._budget.holds(verdict) else None
        self.validation_accuracy = verdict.accuracy
        self._context.notes.update(
            shift=shift, validation_divergence=verdict.divergence, tolerated_divergence=self._budget.divergence
        )

    @torch.no_grad()
    def _judge(self, shift: float) -> Verdict:
        """What the validation part says of k + shift."""
        bounds = self._bounds(shift)
        indices = self._context.validation_indices
        divergences: list[Tensor] = []
        correct = 0
        originals = self._reference.batches(batch_size=self._context.batch_size)
        samples = self._context.samples.batches(indices, self._context.batch_size)
        for original, batch in zip(originals, samples, strict=True):
            assert isinstance(original.x, Tensor)  # as _original_logits gave it
            logits = self._graph(bounds, batch.x)
            divergences.append(divergence(original.x, logits).cpu())
            correct += int((logits.argmax(1) == batch.y).sum())
        of_each = torch.cat(divergences).double()
        spared = of_each.max() if len(of_each) > 1 else 0.0
        return Verdict(float((of_each.sum() - spared) / max(1, len(of_each) - 1)), correct / len(indices))

    def _bounds(self, shift: float) -> dict[str, Tensor]:
        return {name: mean + (self._k_of(name) + shift) * self._scale[name] for name, mean in self._mean.items()}

    def _k_of(self, name: str) -> Tensor | float:
        return self._k.get(name, 0.0)

    def _smallest(self, accepts: Callable[[float], bool], low: float, high: float) -> float:
        """The smallest number that ``accepts``, between ``low`` and, if it has to be, the widest there is."""
        while not accepts(high) and high < _WIDEST:
            low, high = high, 2 * high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if accepts(middle) else (middle, high)
        return high

    @torch.no_grad()
    def _original_logits(self) -> Iterator[Tensor]:
        for batch in self._context.samples.batches(self._context.validation_indices, self._context.batch_size):
            yield self._context.logits(call_model(self._context.graph, batch.x))

    def tightness(self) -> float:
        """1 − (Σ mean(bound) now / Σ mean(bound) where the published search starts)."""
        now = sum(float(bound.detach().mean()) for bound in self._bounds(0.0).values())
        return 1 - now / self._widest_mean if self._widest_mean > 0 else 0.0

    def failure(self) -> str:
        """Says that even the widest bounds change too much."""
        return (
            f"no bounds keep the accuracy of the validation part within {self._tolerance} and its divergence within "
            f"{self._budget.divergence:.3g} nats; are the model's class scores finite on the calibration set?"
        )

    def state(self) -> dict[str, Any]:
        """See :meth:`Search.state`."""
        return {
            "k": {name: k.detach() for name, k in self._k.items()},
            "optimizer": self._optimizer.state_dict(),
            "verdict": None if self._verdict is None else list(self._verdict),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See :meth:`Search.restore`."""
        with torch.no_grad():
            for name, k in self._k.items():
                k.copy_(state["k"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        if state["verdict"] is not None:
            self._verdict = Verdict(*state["verdict"])
            self.validation_accuracy = self._verdict.accuracy

    def close(self) -> None:
        """Give the disk space of the reference outputs back."""
        self._reference.close()


def divergence(original: Tensor, sanitised: Tensor) -> Tensor:
    """KL(original ‖ sanitised) of each sample in nats, (N,), from logits (N, classes)."""
    expected, found = F.log_softmax(original.float(), 1), F.log_softmax(sanitised.float(), 1)
    return (expected.exp() * (expected - found)).sum(1)


def _spread(context: CalibrationContext) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Mean and scale of every unit over the fit part, shaped as bounds, and Σ mean(mean + 4 · std)."""
    means: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    widest = 0.0
    for site, moments in observe_moments(context).items():
        mean, std = moments.mean, moments.std()
        scale = (std.square() + _FLOOR**2 * std.square().mean()).sqrt()
        for shaped, values in ((means, mean), (scales, scale)):
            shaped[site.name] = from_units(values, site, context.granularity).to(context.device, torch.float32)
        widest += float((mean + WIDTH * std).mean())
    return means, scales, widest
