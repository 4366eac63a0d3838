"""Two runs side by side: which figures changed by more than their spread.

A time has its spread in the file: its 20th and 80th percentile. Of a figure that stands in several rows (seeds, rounds)
it is the range of the rows. One that was taken once has none; it counts as changed from ``TAKEN_ONCE`` on, by its kind.
What follows from other figures (ratios, speeds, shares of a ceiling) is left out, as is how it was measured.
"""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = ("batch", "side", "width", "threads", "images", "tolerance")
"""Numbers that say, like every text, which measurement it is. All others are figures."""
LEFT_OUT = (
    *("seed", "calls", "processes", "samples", "calls_a_sample", "published_steps_timed", "operand_sets"),
    *("complete", "machine", "planned", "done", "cases", "problems", "reason", "failure", "candidate", "configuration"),
    *("ratio", "ratios", "int8_ratio", "speed", "share_of_roofline", "fused_faster_than"),
    *("images_per_second", "samples_per_second", "flops", "memory_bound", "roofline_microseconds", "smi"),
)
SPREAD = ("median", "p20", "p80")
TAKEN_ONCE = {"noisy": 0.1, "error": 1.0, "exact": 0.01}
"""By how much of the old figure, by kind: times, memory and rates; rounding errors, which may double; all others."""
NOISY = ("median", "seconds", "_ms", "_mib", "bandwidth", "peak", "peaks", "copies")
MORE_IS_BETTER = (
    *("accuracy", "robust_accuracy", "defence_effectiveness", "agreement", "int8_agreement", "int8_snr_db", "auroc"),
    *("detected", "detected_at_threshold", "bandwidth", "peak", "peaks", "copies", "agreeing"),
)
LESS_IS_BETTER = (
    *("median", "seconds", "_ms", "_mib", "error", "attack_success", "false_alarms_at_threshold", "bytes", "changed"),
)

Name = tuple[str, ...]
"""What a figure is called, and before it the fields and keys around it."""


@dataclass(frozen=True)
class Figure:
    """A figure and the range that its repetitions lie in; both ends are the figure itself where it was taken once."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """A figure in two runs.

    Attributes:
        row: which one: what it is called, and its fields and keys that are no figures, as ``name=value``.
        old, new: it, in the unit of the files; NaN where that file has none.
        beyond_spread: whether the ranges lie apart, or one of the files lacks it.
        verdict: "faster" or "slower", of other figures "better" or "worse", "changed" where either may be, "gone" or
            "new"; empty within the spread.
    """

    row: str
    old: float
    new: float
    beyond_spread: bool
    verdict: str

    @property
    def ratio(self) -> float:
        """The new figure over the old."""
        return self.new / self.old if self.old else math.inf if self.new else 1.0

    def __str__(self) -> str:
        if self.verdict in ("gone", "new"):
            return f"{self.row}: {self.verdict}"
        ratio = f" ({self.ratio:.2f}×)" if math.isfinite(self.ratio) else ""
        return f"{self.row}: {self.old:.4g} → {self.new:.4g}{ratio} {self.verdict}".rstrip()


def changes(old: Path, new: Path) -> list[Change]:
    """Every figure of two result files, those beyond their spread first, by how much.

    Raises:
        ValueError: a file is no result file, or the two have no figure in common.
    """
    before, after = (_figures(path) for path in (old, new))
    if not before.keys() & after.keys():
        raise ValueError(f"{old} and {new} have no figure in common; compare two runs of the same benchmark")
    found = [_change(path, before[path], after[path]) for path in before if path in after]
    found += [Change(_named(path), figure.value, math.nan, True, "gone") for path, figure in _missing(before, after)]
    found += [Change(_named(path), math.nan, figure.value, True, "new") for path, figure in _missing(after, before)]
    return sorted(found, key=lambda change: (not change.beyond_spread, -_distance(change)))


def _missing(these: dict[Name, Figure], those: dict[Name, Figure]) -> list[tuple[Name, Figure]]:
    return [(path, figure) for path, figure in these.items() if path not in those]


def _distance(change: Change) -> float:
    return abs(math.log(change.ratio)) if change.ratio > 0 else math.inf


def _change(path: Name, old: Figure, new: Figure) -> Change:
    apart = old.high < new.low or new.high < old.low
    if old.low == old.high and new.low == new.high:
        apart = abs(new.value - old.value) > TAKEN_ONCE[_kind(path)] * abs(old.value)
    return Change(_named(path), old.value, new.value, apart, _verdict(path, old.value, new.value) if apart else "")


def _verdict(path: Name, old: float, new: float) -> str:
    if _is(path, ("median", "seconds", "_ms")):
        return "slower" if new > old else "faster"
    if _is(path, MORE_IS_BETTER):
        return "better" if new > old else "worse"
    if _is(path, LESS_IS_BETTER):
        return "better" if new < old else "worse"
    return "changed"


def _kind(path: Name) -> str:
    return "noisy" if _is(path, NOISY) else "error" if _is(path, ("error",)) else "exact"


def _is(path: Name, names: tuple[str, ...]) -> bool:
    """Whether the figure, or what it stands under, has one of these names; with ``_`` or a plural s, ends in it."""
    return any(part == name or part.endswith(name) for part in path if "=" not in part for name in names)


def _named(path: Name) -> str:
    return ", ".join(path)


def _figures(path: Path) -> dict[Name, Figure]:
    try:
        content = json.loads(path.read_text())
        figures = content["figures"] if "figures" in content else content["results"]  # of unit-fast bench
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result file of these benchmarks: {error!r}") from error
    repeated: dict[Name, list[Figure]] = {}
    for name, figure in _walked(figures, ()):
        repeated.setdefault(name, []).append(figure)
    return {
        name: Figure(
            statistics.median(each.value for each in all_), min(each.low for each in all_), max(e.high for e in all_)
        )
        for name, all_ in repeated.items()
    }


def _walked(value: Any, path: Name) -> Iterator[tuple[Name, Figure]]:
    """Every figure, named by the fields and keys around it; rows of a list by what they say of themselves."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield path, Figure(float(value), float(value), float(value))
    elif isinstance(value, list):
        for place, content in enumerate(value):
            yield from _walked(content, path if isinstance(content, dict) else (*path, str(place)))
    elif isinstance(value, dict):
        value = {name: content for name, content in value.items() if name not in LEFT_OUT}
        plain = {name: content for name, content in value.items() if not isinstance(content, list | dict)}
        own = [name for name, content in sorted(plain.items()) if name in SETTINGS or isinstance(content, str | bool)]
        path = (*path, *(f"{name}={value[name]}" for name in own))
        for unit in ("_ms", ""):
            names = [f"{name}{unit}" for name in SPREAD]
            if all(name in value for name in names):
                yield (*path, names[0]), Figure(*(float(value[name]) for name in names))
                own += names
        for name, content in value.items():
            if name not in own:
                yield from _walked(content, (*path, name))
