"""Counting predictions by class, in memory that does not grow with the data."""

import torch
from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation.metrics import Rate
from unit_fast.evaluation.report import ClassResult


class Tally:
    """Counts, per class, what one model made of clean and of triggered samples."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._samples, self._correct, self._attacked, self._reached, self._kept, self._seen_as = (
            torch.zeros(classes, dtype=torch.int64) for _ in range(6)
        )

    def add_clean(self, labels: Tensor, predictions: Tensor) -> None:
        """Count clean samples; labels and predictions (N,), int64."""
        self._samples += self._count(labels)
        self._correct += self._count(labels[predictions == labels])

    def add_triggered(self, labels: Tensor, targets: Tensor, predictions: Tensor) -> None:
        """Count triggered samples, all of them of other classes than their targets; (N,), int64 each."""
        self._attacked += self._count(labels)
        self._reached += self._count(labels[predictions == targets])
        self._kept += self._count(labels[predictions == labels])
        self._seen_as += self._count(predictions)

    def benign(self) -> Rate:
        """Clean samples given their class."""
        return Rate(int(self._correct.sum()), int(self._samples.sum()))

    def attacked(self) -> tuple[Rate, Rate]:
        """Attack success rate and robust accuracy.

        Raises:
            DataError: every sample is of its target class.
        """
        total = int(self._attacked.sum())
        if total == 0:
            raise DataError(
                "no sample is of another class than its target, so an attack success rate cannot be measured; "
                "evaluate on samples of other classes, or check target="
            )
        return Rate(int(self._reached.sum()), total), Rate(int(self._kept.sum()), total)

    def by_class(self) -> tuple[ClassResult, ...]:
        """One result a class, in order."""
        return tuple(
            ClassResult(
                label=label,
                benign=_rate(self._correct[label], self._samples[label]),
                attack=_rate(self._reached[label], self._attacked[label]),
                robust=_rate(self._kept[label], self._attacked[label]),
                triggered_as=int(self._seen_as[label]),
            )
            for label in range(self.classes)
        )

    def _count(self, labels: Tensor) -> Tensor:
        return torch.bincount(labels, minlength=self.classes)


def _rate(hits: Tensor, total: Tensor) -> Rate | None:
    return Rate(int(hits), int(total)) if int(total) else None
