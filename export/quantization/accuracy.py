"""What int8 costs, measured on the calibration data: predictions, accuracy and signal to noise against float32."""

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unit_fast.calibration.samples import SampleStore
from unit_fast.errors import DataError, ParityError
from unit_fast.export.quantization.ranges import BATCH_SIZE, feed
from unit_fast.export.report import Int8Accuracy
from unit_fast.export.session import OnnxRuntimeModel

# Trained networks change less than 1 %, untrained ones up to 4 %, whoever quantises them (docs/export.md): beyond that
# the ranges are wrong, not the rounding.
LARGEST_CHANGE = 0.05
LARGEST_LOSS = 0.01
# A lead of less than a tenth of the mean lead is a tie, which may fall either way.
TIE = 0.1
# In dB, for models that give no classes: noise of a tenth of the signal.
LEAST_SIGNAL = 20.0
# The same where there are classes, whose agreement says nothing when every sample is given the same one: on noise,
# EfficientNet-Lite0 kept all of them at −3 dB. Half the signal as noise changes classes by the third part.
LEAST_SIGNAL_OF_CLASSES = 6.0


class _Signal:
    """How much one output varies between samples, and how far int8 is off."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Any = 0.0
        self.power = 0.0
        self.noise = 0.0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        exact = expected.astype(np.float64)
        self.count += len(exact)
        self.total = self.total + exact.sum(0)
        self.power += float((exact**2).sum())
        self.noise += float(((exact - found) ** 2).sum())

    @property
    def variance(self) -> float:
        """Summed over the values of a sample; of the values themselves where samples do not differ."""
        between = self.power / self.count - float(((self.total / self.count) ** 2).sum())
        return between if between > 1e-12 * self.power / self.count else self.power / self.count

    @property
    def decibels(self) -> float:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(max(self.variance * self.count / self.noise, 1e-30))


def measure_accuracy(plain: Path, quantized: Path, samples: SampleStore) -> Int8Accuracy:
    """Compare the files ``plain`` (float32) and ``quantized`` on all samples.

    Raises:
        DataError: the float32 model gives NaN or infinity.
    """
    signals: defaultdict[str, _Signal] = defaultdict(_Signal)
    lost: list[float] = []
    leads = 0.0
    classified = labelled = right_before = right_after = 0
    for before, after, labels in _outputs(plain, quantized, samples):
        for name, expected in before.items():
            if expected.dtype.kind != "f":
                continue
            if not np.isfinite(expected).all():
                raise DataError(f"the output {name} is NaN or infinite in float32 on calibration_data")
            signals[name].add(expected, after[name])
        scores, found = next(iter(before.values())), next(iter(after.values()))
        if scores.ndim != 2 or scores.shape[1] < 2 or scores.dtype.kind != "f":
            continue
        classified += len(scores)
        ordered = np.partition(scores, -2, axis=1)
        leads += float((ordered[:, -1] - ordered[:, -2]).sum())
        rows = np.flatnonzero(scores.argmax(1) != found.argmax(1))
        lost += [float(scores[row].max() - scores[row, found[row].argmax()]) for row in rows]
        if labels is not None:
            labelled += len(labels)
            right_before += int((scores.argmax(1) == labels).sum())
            right_after += int((found.argmax(1) == labels).sum())
    tie = TIE * leads / max(classified, 1)
    return Int8Accuracy(
        samples=len(samples),
        agreement=1 - len(lost) / classified if classified else None,
        changed=sum(lead > tie for lead in lost) / classified if classified else None,
        limit=LARGEST_CHANGE,
        accuracy_before=right_before / labelled if labelled else None,
        accuracy_after=right_after / labelled if labelled else None,
        signal_to_noise=min((signal.decibels for signal in signals.values()), default=math.inf),
    )


def check_accuracy(found: Int8Accuracy) -> None:
    """Raise ParityError unless int8 is within the limits."""
    advice = (
        "give more calibration data, like that the model is served, use bounds per channel or neuron, or "
        'precision="fp32". No file was written'
    )
    if found.changed is not None and found.changed > LARGEST_CHANGE:
        raise ParityError(
            f"int8 changes the class of {found.changed:.1%} of {found.samples} calibration samples, ties left out "
            f"({found.signal_to_noise:.1f} dB signal to noise); expected at most {LARGEST_CHANGE:.0%}: " + advice
        )
    least = LEAST_SIGNAL if found.changed is None else LEAST_SIGNAL_OF_CLASSES
    if found.signal_to_noise < least:
        raise ParityError(
            f"the outputs of int8 have {found.signal_to_noise:.1f} dB signal to noise on {found.samples} calibration "
            f"samples; expected at least {least:g} dB: " + advice
        )
    if found.accuracy_before is not None and found.accuracy_after is not None:
        loss = found.accuracy_before - found.accuracy_after
        # One sample of few may change its class whatever the method.
        if loss > max(LARGEST_LOSS, 1.5 / found.samples):
            raise ParityError(
                f"int8 loses {loss:.1%} of accuracy on {found.samples} calibration samples "
                f"({found.accuracy_before:.4f} to {found.accuracy_after:.4f}); expected at most {LARGEST_LOSS:.0%}: "
                + advice
            )


def _outputs(
    plain: Path, quantized: Path, samples: SampleStore
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray | None]]:
    before, after = OnnxRuntimeModel(plain, threads=1), OnnxRuntimeModel(quantized, threads=1)
    for batch in samples.batches(batch_size=BATCH_SIZE):
        inputs = feed(before, batch.x)
        yield (
            {name: value.numpy() for name, value in before.run(inputs).items()},
            {name: value.numpy() for name, value in after.run(inputs).items()},
            batch.y.cpu().numpy() if samples.labels_given else None,
        )
