"""What a search may spend of clean behaviour: the tolerance, held by the divergence or by the accuracy.

A tolerance is a share of changed decisions. A decision that was sure and flips costs at least ln 2 nats, so by Markov's
inequality no more than KL / ln 2 of them flip: tolerance · ln 2 nats hold the tolerance on samples of which the model
is sure, as it is of those that it was trained on, whose accuracy says little. A model that is unsure spends nats
without an error, so that it uses hardly any of the tolerance; its accuracy on samples that it was not trained on does.
What accuracy holds may cost six times the nats, then: few enough that it is they that end where accuracy says nothing.
"""

from dataclasses import dataclass
from math import log
from typing import Literal, NamedTuple, Self

Hold = Literal["divergence", "accuracy"]

_UNSURE = 6.0  # times the nats that a model may spend that is sure of its decisions
_ROUNDING = 1e-9  # of a difference between two shares, far below that of a sample


class Verdict(NamedTuple):
    """What the validation part says of bounds."""

    divergence: float
    """From the original outputs in nats, the mean of all samples but the worst."""
    accuracy: float
    """In [0, 1]."""


@dataclass(frozen=True)
class Budget:
    """What bounds have to keep on the validation part.

    Attributes:
        divergence: nats at most.
        accuracy: at least, at most 1; the model's less the tolerance.
    """

    divergence: float
    accuracy: float

    @classmethod
    def of_divergence(cls, tolerance: float, accuracy: float) -> Self:
        """For a model with ``accuracy`` without bounds: the divergence, and the accuracy besides."""
        return cls(tolerance * log(2), accuracy - tolerance)

    @classmethod
    def of_accuracy(cls, tolerance: float, accuracy: float) -> Self:
        """For a model with ``accuracy`` without bounds: the accuracy, and six times the divergence."""
        return cls(_UNSURE * tolerance * log(2), accuracy - tolerance)

    def holds(self, verdict: Verdict) -> bool:
        """Whether bounds of this verdict are within the budget."""
        return verdict.divergence <= self.divergence and verdict.accuracy >= self.accuracy - _ROUNDING
