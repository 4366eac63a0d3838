"""Rates with their confidence intervals, and the defence effectiveness rating."""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from unit_fast.errors import DataError


@dataclass(frozen=True)
class Rate:
    """A share of samples, ``hits`` of ``total``.

    Raises:
        DataError: no samples, or more hits than samples.
    """

    hits: int
    total: int

    def __post_init__(self) -> None:
        if self.total < 1 or not 0 <= self.hits <= self.total:
            raise DataError(f"a rate needs 0 ≤ hits ≤ total and total ≥ 1, found {self.hits} of {self.total}")

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.hits / self.total

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval of a binomial share: honest near 0 and 1, where p ± z·σ is not.

        Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927.

        Args:
            confidence: in (0, 1).

        Returns:
            Lower and upper end, in [0, 1].
        """
        if not 0 < confidence < 1:
            raise DataError(f"confidence: expected a number between 0 and 1, found {confidence}")
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        n, p = self.total, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low = 0.0 if self.hits == 0 else centre - half
        high = 1.0 if self.hits == self.total else centre + half
        return low, high


def defence_effectiveness(
    benign_before: float, benign_after: float, attack_before: float, attack_after: float
) -> float:
    """Defence effectiveness rating: (max(0, ΔASR) − max(0, ΔBA) + 1) / 2, Δ what the defence took away.

    1 is a perfect defence (ASR from 1 to 0, no BA lost), 0.5 one that does nothing.

    Source: Zhu, Wei, Shen, Fan, Wu, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization",
    ICCV 2023.

    Args:
        benign_before: benign accuracy of the undefended model, in [0, 1].
        benign_after: of the defended one.
        attack_before: attack success rate of the undefended model, in [0, 1].
        attack_after: of the defended one.
    """
    return (max(0.0, attack_before - attack_after) - max(0.0, benign_before - benign_after) + 1) / 2
