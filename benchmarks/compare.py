"""Two runs side by side: which figures changed by more than their spread."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What was measured, as opposed to what says which measurement it is.
FIGURES = ("median", "p20", "p80")
MEASURED = (*FIGURES, "_ms", "_mib", "seconds", "calls", "samples", "_sample", "_per_second", "speed", "ratio", "error")


@dataclass(frozen=True)
class Change:
    """A time of one row in two runs.

    Attributes:
        row: which one: its fields that are not measurements, as ``name=value``.
        old, new: the median, in the unit of the files.
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
        return f"{self.row}: {self.old:.4g} → {self.new:.4g} ({self.ratio:.2f}×{verdict})"


def changes(old: Path, new: Path) -> list[Change]:
    """Every timed row that both result files have, those beyond their spread first, by how much.

    Raises:
        ValueError: a file is no result file, or the two have no row in common.
    """
    before, after = (dict(_timed_rows(_figures(path))) for path in (old, new))
    both = [
        Change(
            row,
            before[row]["median"],
            after[row]["median"],
            before[row]["p80"] < after[row]["p20"] or after[row]["p80"] < before[row]["p20"],
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


def _timed_rows(value: Any, inherited: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, float]]]:
    """Every group of median, 20th and 80th percentile, named by the fields and keys around it."""
    if isinstance(value, list):
        for content in value:
            yield from _timed_rows(content, inherited)
    if not isinstance(value, dict):
        return
    own = {k: v for k, v in value.items() if not isinstance(v, dict | list) and not k.endswith(MEASURED)}
    names = (*inherited, *(f"{name}={content}" for name, content in sorted(own.items())))
    for unit in ("_ms", ""):
        if all(f"{figure}{unit}" in value for figure in FIGURES):
            yield ", ".join(names), {figure: value[f"{figure}{unit}"] for figure in FIGURES}
    for key, content in value.items():
        yield from _timed_rows(content, (*names, key) if isinstance(content, dict) else names)
