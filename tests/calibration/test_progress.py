"""Progress reports and the bar."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from unit_fast.calibration.progress import ProgressBar, ProgressStep, StepClock, figures, reporting, silent


def test_figures_name_what_is_known() -> None:
    assert figures(ProgressStep(1, 2)) == ""
    step = ProgressStep(10, 75, validation_accuracy=0.9876, tightness=0.421, seconds_left=83.2)
    assert figures(step) == "accuracy 98.76%  tightened 42.1%  1:23 left"


def test_the_bar_shows_step_accuracy_tightness_and_time() -> None:
    out = io.StringIO()
    with ProgressBar("fitting", Console(file=out, width=120, force_terminal=True)) as bar:
        bar(ProgressStep(30, 75, validation_accuracy=0.5, tightness=0.1, seconds_left=61))
    text = out.getvalue()
    for part in ("fitting", "30/75", "accuracy 50.00%", "tightened 10.0%", "1:01 left"):
        assert part in text


def test_a_bar_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="`with` block"):
        ProgressBar()(ProgressStep(0, 1))


def test_silence_unless_asked(capfd: pytest.CaptureFixture[str]) -> None:
    for choice in (None, False):
        with reporting(choice) as report:
            assert report is silent
            report(ProgressStep(1, 1))
    assert capfd.readouterr() == ("", "")


def test_true_draws_on_standard_error_only(capfd: pytest.CaptureFixture[str]) -> None:
    with reporting(True) as report:
        report(ProgressStep(1, 1))
    out, err = capfd.readouterr()
    assert out == ""
    assert "1/1" in err


def test_a_callback_is_used_as_it_is() -> None:
    seen: list[ProgressStep] = []
    with reporting(seen.append) as report:
        report(ProgressStep(1, 3))
    assert seen == [ProgressStep(1, 3)]


def test_time_left_goes_by_the_steps_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = StepClock(total=50, done=30)
    assert clock.seconds_left(30) is None
    now[0] = 110.0
    assert clock.seconds_left(35) == 30.0  # 2 seconds a step, 15 steps left


def test_rich_is_loaded_only_for_a_bar() -> None:
    code = "import sys, unit_fast.calibration.progress; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
