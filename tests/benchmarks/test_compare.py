"""Two runs compared: a figure changed where the spreads lie apart, and nowhere else."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import SETTINGS, Change, changes
from benchmarks.results_file import RESULTS

ROOT = Path(__file__).parents[2]


def _row(batch: int, median: float, spread: float = 0.1) -> dict[str, object]:
    times = {"median_ms": median, "p20_ms": median - spread, "p80_ms": median + spread}
    return {"provider": "compile", "batch": batch, "calls": int(median * 7), "speed": 1 / median} | times


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    runs = {
        "old": [_row(1, 1.0), _row(2, 2.0), _row(4, 4.0), _row(8, 8.0)],
        "new": [_row(1, 1.15), _row(2, 3.0), _row(4, 3.0), {"part": [_row(16, 1.0)]}],
    }
    for name, figures in runs.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"environment": {}, "figures": figures}))
    return tmp_path / "old.json", tmp_path / "new.json"


@pytest.fixture
def compared(tmp_path: Path) -> Callable[..., list[Change]]:
    def run(old: Any, new: Any) -> list[Change]:
        for name, figures in (("old", old), ("new", new)):
            (tmp_path / f"{name}.json").write_text(json.dumps({"figures": figures}))
        return changes(tmp_path / "old.json", tmp_path / "new.json")

    return run


def test_times_are_matched_by_what_they_are_and_judged_by_their_spread(files: tuple[Path, Path]) -> None:
    found = {change.row: change for change in changes(*files)}
    assert {row.removesuffix(", provider=compile, median_ms"): change.verdict for row, change in found.items()} == {
        "batch=2": "slower",
        "batch=4": "faster",
        "batch=1": "",
        "batch=8": "gone",
        "part, batch=16": "new",
    }
    assert [change.beyond_spread for change in found.values()] == [True] * 4 + [False]
    slower = found["batch=2, provider=compile, median_ms"]
    assert slower.ratio == pytest.approx(1.5)
    assert str(slower).endswith("2 → 3 (1.50×) slower")


def test_figures_are_named_by_what_is_around_them(compared: Any) -> None:
    figures = [{"layer": "conv", "batch": 1, "seconds": 3.5, "providers": {"fused": {"median": 2, "p20": 1, "p80": 3}}}]
    assert {change.row for change in compared(figures, figures)} == {
        "batch=1, layer=conv, providers, fused, median",
        "batch=1, layer=conv, seconds",
    }


def test_the_spread_of_repeated_rows_is_their_range(compared: Any) -> None:
    def runs(*attacks: float) -> list[dict[str, Any]]:
        return [{"model": "vgg", "seed": seed, "attack_success": [1.0, left]} for seed, left in enumerate(attacks)]

    def verdicts(*attacks: float) -> dict[str, str]:
        found = compared(runs(0.01, 0.02, 0.03), runs(*attacks))
        return {change.row: change.verdict for change in found}

    after = "model=vgg, attack_success, 1"
    assert verdicts(0.03, 0.05, 0.07)[after] == ""
    assert verdicts(0.04, 0.05, 0.07)[after] == "worse"
    assert verdicts(0.001, 0.002, 0.003)[after] == "better"
    assert verdicts(0.04, 0.05, 0.07)["model=vgg, attack_success, 0"] == ""


@pytest.mark.parametrize(
    ("figure", "within", "beyond", "verdict"),
    [
        ("seconds", 1.09, 1.11, "slower"),
        ("peak_mib", 1.09, 1.11, "worse"),
        ("max_rel_error", 1.9, 2.1, "worse"),
        ("agreement", 0.995, 0.98, "worse"),
        ("bandwidth", 0.91, 0.89, "worse"),
        ("multiprocessors", 1.0, 1.02, "changed"),
    ],
)
def test_a_figure_taken_once_has_the_limit_of_its_kind(compared, figure, within, beyond, verdict) -> None:
    for factor, expected in ((within, ""), (beyond, verdict)):
        (change,) = compared([{"part": "a", figure: 2.0}], [{"part": "a", figure: 2.0 * factor}])
        assert change.verdict == expected, change


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_file_is_compared_and_a_change_in_it_flagged(path: Path, compared: Any) -> None:
    figures = json.loads(path.read_text())["figures"]
    same = compared(figures, figures)
    assert same
    assert not any(change.beyond_spread for change in same)
    assert len({change.row for change in same}) == len(same)
    moved = compared(figures, _tripled(figures))
    flagged = [change for change in moved if change.beyond_spread]
    assert len(flagged) == sum(change.old != 0 for change in same), "a figure moved far beyond its spread unseen"


def _tripled(value: Any, name: str = "") -> Any:
    """Every number that is no setting, times three."""
    if isinstance(value, dict):
        return {key: _tripled(content, key) for key, content in value.items()}
    if isinstance(value, list):
        return [_tripled(content, name) for content in value]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return 3 * value if number and name not in SETTINGS else copy.copy(value)


def test_results_of_unit_fast_bench_are_compared_too(tmp_path: Path) -> None:
    for name, median in (("old", 1.0), ("new", 2.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"model": "timm:x", "results": [_row(1, median)]}))
    (change,) = changes(tmp_path / "old.json", tmp_path / "new.json")
    assert change.verdict == "slower"


def test_files_without_a_figure_in_common_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"figures": [{"median_ms": 1, "p20_ms": 1, "p80_ms": 1, "provider": "x"}]}))
    with pytest.raises(ValueError, match="no figure in common"):
        changes(files[0], other)
    other.write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is no result file"):
        changes(files[0], other)


@pytest.mark.parametrize(("order", "status"), [((0, 1), 1), ((0, 0), 0)], ids=["slower", "the same"])
def test_the_command_fails_when_something_became_slower(files: tuple[Path, Path], order, status) -> None:
    command = [sys.executable, "-m", "benchmarks.report", "--compare", *(str(files[i]) for i in order)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
    assert ended.stdout.splitlines()[-1].startswith(f"{5 if status else 4} figures, beyond their spread: ")
