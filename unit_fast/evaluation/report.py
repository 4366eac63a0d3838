"""What an evaluation found."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from unit_fast.errors import DataError
from unit_fast.evaluation.detection import Detection
from unit_fast.evaluation.examples import Example
from unit_fast.evaluation.metrics import Rate, defence_effectiveness
from unit_fast.files import atomic_write

if TYPE_CHECKING:
    from unit_fast.evaluation.histograms import SiteHistogram

FORMAT = 1


@dataclass(frozen=True)
class ClassResult:
    """The rates of one class; None where no sample counts for it."""

    label: int
    benign: Rate | None
    attack: Rate | None
    robust: Rate | None
    triggered_as: int
    """Triggered samples, of any class, that were taken for this one."""


@dataclass(frozen=True)
class Report:
    """Benign accuracy and, with a trigger, what the attack reaches; all rates in [0, 1].

    Made by :func:`~unit_fast.evaluation.evaluate`. Equality ignores ``examples`` and ``provenance``.
    """

    benign: Rate
    """Clean samples given their class."""
    attack: Rate | None
    """Triggered samples, not of the target class, given the target class. None without a trigger."""
    robust: Rate | None
    """The same samples, still given their own class. None without a trigger."""
    classes: tuple[ClassResult, ...]
    trigger: str | None = None
    target: int | str | None = None
    baseline: "Report | None" = None
    """The same measurement on the undefended model."""
    class_names: tuple[str, ...] = ()
    confidence: float = 0.95
    """Of the intervals shown."""
    detection: tuple[Detection, ...] = ()
    """How well each measure the model takes of its samples tells triggered ones; empty where it takes none."""
    examples: tuple[Example, ...] = field(default=(), compare=False, repr=False)
    provenance: Mapping[str, str | float] = field(default_factory=dict, compare=False, repr=False)
    """When, with which versions, on which device, in how many seconds."""

    @property
    def benign_accuracy(self) -> float:
        """BA, in [0, 1]."""
        return self.benign.value

    @property
    def attack_success_rate(self) -> float | None:
        """ASR, in [0, 1]; None without a trigger."""
        return None if self.attack is None else self.attack.value

    @property
    def robust_accuracy(self) -> float | None:
        """RA, in [0, 1]; None without a trigger."""
        return None if self.robust is None else self.robust.value

    @property
    def defence_effectiveness(self) -> float | None:
        """DER, in [0, 1]; None without a trigger or a baseline."""
        if self.attack is None or self.baseline is None or self.baseline.attack is None:
            return None
        before = self.baseline
        assert before.attack is not None
        return defence_effectiveness(before.benign.value, self.benign.value, before.attack.value, self.attack.value)

    def with_baseline(self, baseline: "Report") -> "Report":
        """This report with the undefended model's beside it."""
        return dataclasses.replace(self, baseline=dataclasses.replace(baseline, baseline=None))

    def name_of(self, label: int) -> str:
        """A class's name, or its number where it has none."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them. Examples and provenance are in it."""
        return {
            "format": FORMAT,
            "benign_accuracy": self.benign_accuracy,
            "attack_success_rate": self.attack_success_rate,
            "robust_accuracy": self.robust_accuracy,
            "defence_effectiveness": self.defence_effectiveness,
            "trigger": self.trigger,
            "target": self.target,
            "confidence": self.confidence,
            "benign": self._rate_dict(self.benign),
            "attack": self._rate_dict(self.attack),
            "robust": self._rate_dict(self.robust),
            "classes": [
                {
                    "label": result.label,
                    "name": self.name_of(result.label),
                    "benign": self._rate_dict(result.benign),
                    "attack": self._rate_dict(result.attack),
                    "robust": self._rate_dict(result.robust),
                    "triggered_as": result.triggered_as,
                }
                for result in self.classes
            ],
            "detection": [
                {
                    "measure": found.measure,
                    "auroc": found.auroc,
                    "threshold": found.threshold,
                    "detected": self._rate_dict(found.detected),
                    "false_alarms": self._rate_dict(found.false_alarms),
                }
                for found in self.detection
            ],
            "class_names": list(self.class_names),
            "provenance": dict(self.provenance),
            "baseline": None if self.baseline is None else self.baseline.to_dict(),
            "examples": [example.to_dict() for example in self.examples],
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save_json(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_json`, whole or not at all.

        Raises:
            OutputError: the place cannot be written to.
        """
        text = self.to_json()
        return atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def save_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str = "Backdoor evaluation",
        histograms: "Sequence[SiteHistogram]" = (),
        settings: Mapping[str, object] | None = None,
    ) -> Path:
        """Write one self-contained HTML page, whole or not at all.

        Args:
            path: where to.
            title: the page's heading.
            histograms: activations per site, from :func:`~unit_fast.evaluation.collect_histograms`.
            settings: anything worth showing with the result: model, calibration method, file names.

        Raises:
            OutputError: the place cannot be written to.
        """
        from unit_fast.evaluation.page import render

        text = render(self, title=title, histograms=histograms, settings=settings or {})
        return atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def table(self) -> Table:
        """The headline rates as a rich table."""
        from unit_fast.evaluation.table import headline_table

        return headline_table(self)

    def __rich__(self) -> Table:
        return self.table()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        """The inverse of :meth:`to_dict`.

        Raises:
            DataError: a newer format, or not a report.
        """
        try:
            if values["format"] != FORMAT:
                raise DataError(
                    f"report format {values['format']}: this version reads format {FORMAT}; update unit_fast"
                )
            return cls(
                benign=Rate(values["benign"]["hits"], values["benign"]["total"]),
                attack=_read_rate(values["attack"]),
                robust=_read_rate(values["robust"]),
                classes=tuple(
                    ClassResult(
                        label=entry["label"],
                        benign=_read_rate(entry["benign"]),
                        attack=_read_rate(entry["attack"]),
                        robust=_read_rate(entry["robust"]),
                        triggered_as=entry["triggered_as"],
                    )
                    for entry in values["classes"]
                ),
                detection=tuple(
                    Detection(
                        measure=entry["measure"],
                        auroc=entry["auroc"],
                        threshold=entry["threshold"],
                        detected=Rate(entry["detected"]["hits"], entry["detected"]["total"]),
                        false_alarms=Rate(entry["false_alarms"]["hits"], entry["false_alarms"]["total"]),
                    )
                    for entry in values.get("detection", ())  # reports of earlier versions have none
                ),
                baseline=None if values["baseline"] is None else cls.from_dict(values["baseline"]),
                class_names=tuple(values["class_names"]),
                examples=tuple(Example.from_dict(entry) for entry in values["examples"]),
                **{name: values[name] for name in ("trigger", "target", "confidence", "provenance")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not an evaluation report: {type(error).__name__}: {error}") from error

    @classmethod
    def load_json(cls, path: str | os.PathLike[str]) -> "Report":
        """Read what :meth:`save_json` wrote.

        Raises:
            DataError: the file is missing, damaged or of a newer format.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read an evaluation report from {path}: {error}") from error
        try:
            return cls.from_dict(values)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def _rate_dict(self, rate: Rate | None) -> dict[str, float] | None:
        if rate is None:
            return None
        low, high = rate.interval(self.confidence)
        return {**dataclasses.asdict(rate), "value": rate.value, "low": low, "high": high}


def _read_rate(values: Mapping[str, int] | None) -> Rate | None:
    return None if values is None else Rate(values["hits"], values["total"])
