"""Two runs side by side: which figures changed by more than their spread."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What was measured, as opposed to what says which measurement it is.
MEASURED = ("_ms", "_mib", "seconds", "calls", "_per_second", "ratio", "accuracy", "attack_success", "error")


@dataclass(frozen=True)
class Change:
    """A time of one row in two runs.

    Attributes:
        row: which one: its fields that are not measurements, as ``name=value``.
        old, new: median milliseconds.
        beyond_spread: whether the ranges from the 20th to the 80th percentile lie apart.
    """

    row: str
    old: float
    new: float
    beyond_spread: bool

    @property
    def ratio(self) -> float:
        """New time over old: above 1 is slower."""
        return self.new / self.old

    def __str__(self) -> str:
        verdict = "" if not self.beyond_spread else " slower" if self.new > self.old else " faster"
        return f"{self.row}: {self.old:.4g} → {self.new:.4g} ms ({self.ratio:.2f}×{verdict})"


def changes(old: Path, new: Path) -> list[Change]:
    """Every timed row that both result files have, those beyond their spread first, by how much.

    Raises:
        ValueError: a file is no result file, or the two have no row in common.
    """
    before, after = (dict(_timed_rows(_figures(path))) for path in (old, new))
    both = [
        Change(
            row,
            before[row]["median_ms"],
            after[row]["median_ms"],
            before[row]["p80_ms"] < after[row]["p20_ms"] or after[row]["p80_ms"] < before[row]["p20_ms"],
        )
        for row in before
        if row in after
    ]
    if not both:
        raise ValueError(f"{old} and {new} have no timed row in common; compare two runs of the same benchmark")
    return sorted(both, key=lambda change: (not change.beyond_spread, -abs(change.ratio - 1)))


def _figures(path: Path) -> Any:
    try:
        return json.loads(path.read_text())["figures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result file of these benchmarks: {error!r}") from error


def _timed_rows(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if "median_ms" in value:
            given = {k: v for k, v in value.items() if not isinstance(v, dict | list) and not k.endswith(MEASURED)}
            yield ", ".join(f"{name}={content}" for name, content in sorted(given.items())), value
        for content in value.values():
            yield from _timed_rows(content)
    elif isinstance(value, list):
        for content in value:
            yield from _timed_rows(content)
