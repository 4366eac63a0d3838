"""Running a search: progress, Ctrl-C between steps, checkpoint and resume, and the end without a result."""

import signal
import threading

import pytest
import torch

import unit_fast as uf
from tests.calibration.backdoored_digits import backdoored_digits
from unit_fast.calibration.search import CheckpointWarning, InterruptedWarning

pytestmark = pytest.mark.filterwarnings("ignore:the model gets all")

STEPS = 12


@pytest.fixture(params=["default", "accuracy", "paper"])
def method(request):
    if request.param == "paper":
        return uf.Unit(recipe="paper", steps=STEPS, learning_rate=0.02, batch_size=40, tolerance=0.2)
    if request.param == "accuracy":
        return uf.Unit(steps=STEPS, learning_rate=0.5, hold="accuracy", tolerance=0.2)
    return uf.Unit(steps=STEPS)


def calibrate(method, **options):
    model, digits = backdoored_digits()
    return uf.calibrate(model, [digits.calibration], method, **options)


def interrupt_at(step: int):
    """A progress callback that presses Ctrl-C while a step runs."""

    def press(report) -> None:
        if report.step == step:
            signal.raise_signal(signal.SIGINT)

    return press


def test_every_step_is_reported(method):
    reports = []
    calibrate(method, progress=reports.append)
    assert [report.step for report in reports] == list(range(1, len(reports) + 1))
    assert {report.total for report in reports} == {STEPS}
    assert reports[-1].validation_accuracy > 0.7
    assert reports[-1].tightness > 0
    assert reports[-1].seconds_left == pytest.approx(0, abs=60)


def test_interrupted_and_resumed_equals_uninterrupted(method, tmp_path):
    checkpoint = tmp_path / "calibration.checkpoint"
    expected = calibrate(method)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.warns(InterruptedWarning, match=f"interrupted after step 5 of {STEPS}.*resume from"):
        partial = calibrate(method, checkpoint=checkpoint, progress=interrupt_at(5))
    assert signal.getsignal(signal.SIGINT) is handler
    assert partial.metadata["interrupted"] is True
    assert partial.metadata["steps"] == 5
    assert checkpoint.exists()
    resumed = calibrate(method, checkpoint=checkpoint)
    assert not checkpoint.exists(), "a finished calibration leaves no checkpoint"
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert not all(torch.equal(partial[name], expected[name]) for name in expected)


def test_interrupted_bounds_are_within_the_tolerance():
    with pytest.warns(InterruptedWarning):
        bounds = calibrate(uf.Unit(steps=STEPS), progress=interrupt_at(2))
    assert bounds.metadata["validation_divergence"] <= bounds.metadata["tolerated_divergence"]


@pytest.mark.parametrize(
    "change",
    [
        {"method": uf.Unit(steps=STEPS, tolerance=0.05)},
        {"seed": 1},
        {"granularity": "channel"},
        {"include": "relu1"},
    ],
    ids=["settings", "seed", "granularity", "sites"],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change):
    checkpoint = tmp_path / "calibration.checkpoint"
    with pytest.warns(InterruptedWarning):
        calibrate(uf.Unit(steps=STEPS), checkpoint=checkpoint, progress=interrupt_at(1))
    options = {"method": uf.Unit(steps=STEPS)} | change
    with pytest.raises(uf.DataError, match="checkpoint of another calibration"):
        calibrate(checkpoint=checkpoint, **options)
    assert checkpoint.exists(), "somebody's work is not thrown away"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04N."], ids=["empty", "text", "pickle"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    checkpoint = tmp_path / "calibration.checkpoint"
    checkpoint.write_bytes(content)
    with pytest.raises(uf.DataError, match="no checkpoint of a calibration, or is damaged"):
        calibrate(uf.Unit(steps=STEPS), checkpoint=checkpoint)


def test_a_checkpoint_that_cannot_be_written_costs_no_bounds(tmp_path):
    checkpoint = tmp_path / "missing" / "calibration.checkpoint"
    with (
        pytest.warns(CheckpointWarning, match="no checkpoint was written: cannot write"),
        pytest.warns(InterruptedWarning),
    ):
        bounds = calibrate(uf.Unit(steps=STEPS), checkpoint=checkpoint, progress=interrupt_at(3))
    assert bounds.metadata["steps"] == 3


def test_a_search_without_a_passing_step_says_so():
    # One step this wide closes everything: no accuracy is left.
    method = uf.Unit(recipe="paper", steps=2, learning_rate=100.0, tolerance=0.01)
    with pytest.raises(uf.ToleranceError, match=r"none of 2 steps .* within the tolerance 0.01"):
        calibrate(method)


def test_a_handler_that_python_cannot_put_back_is_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("the handler was replaced"))
    assert calibrate(uf.Unit(steps=2)).metadata["steps"] == 2


def test_runs_in_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(calibrate(uf.Unit(steps=2))))
    thread.start()
    thread.join()
    assert found[0].metadata["steps"] == 2
