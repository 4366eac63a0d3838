"""Two runs compared: a change counts where the spreads lie apart, and nowhere else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare import changes

ROOT = Path(__file__).parents[2]


def _row(batch: int, median: float, spread: float = 0.1) -> dict[str, object]:
    times = {"median_ms": median, "p20_ms": median - spread, "p80_ms": median + spread}
    return {"provider": "compile", "batch": batch, "calls": int(median * 7), "peak_mib": median} | times


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    runs = {
        "old": [_row(1, 1.0), _row(2, 2.0), _row(4, 4.0), _row(8, 8.0)],
        "new": [_row(1, 1.15), _row(2, 3.0), _row(4, 3.0), {"part": [_row(16, 1.0)]}],
    }
    for name, figures in runs.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"environment": {}, "figures": figures}))
    return tmp_path / "old.json", tmp_path / "new.json"


def test_rows_are_matched_by_what_they_are_and_judged_by_their_spread(files: tuple[Path, Path]) -> None:
    found = {change.row: change for change in changes(*files)}
    assert list(found) == [f"batch={n}, provider=compile" for n in (2, 4, 1)]
    slower, faster, same = found.values()
    assert (slower.beyond_spread, faster.beyond_spread, same.beyond_spread) == (True, True, False)
    assert slower.ratio == pytest.approx(1.5)
    assert "slower" in str(slower)
    assert "faster" in str(faster)
    assert "slower" not in str(same)


def test_figures_are_named_by_what_is_around_them(tmp_path: Path) -> None:
    figures = [{"layer": "conv", "batch": 1, "seconds": 3.5, "providers": {"fused": {"median": 2, "p20": 1, "p80": 3}}}]
    (tmp_path / "run.json").write_text(json.dumps({"figures": figures}))
    (change,) = changes(tmp_path / "run.json", tmp_path / "run.json")
    assert (change.row, change.ratio, change.beyond_spread) == ("batch=1, layer=conv, providers, fused", 1.0, False)


def test_files_without_a_row_in_common_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"figures": [{"median_ms": 1, "p20_ms": 1, "p80_ms": 1, "provider": "x"}]}))
    with pytest.raises(ValueError, match="no timed row in common"):
        changes(files[0], other)
    other.write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is no result file"):
        changes(files[0], other)


@pytest.mark.parametrize(("order", "status"), [((0, 1), 1), ((0, 0), 0)], ids=["slower", "the same"])
def test_the_command_fails_when_something_became_slower(files: tuple[Path, Path], order, status) -> None:
    command = [sys.executable, "-m", "benchmarks.report", "--compare", *(str(files[i]) for i in order)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
    assert "beyond their spread" in ended.stdout
