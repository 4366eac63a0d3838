"""Unit, whole: it removes a real backdoor, keeps its promises, and refuses what it cannot keep them with."""

from math import log

import pytest
import torch
import torch.nn.functional as F

import unit_fast as uf
from tests.calibration.backdoored_digits import accuracy_and_attack_success, backdoored_digits
from unit_fast.calibration.split import split_by_class
from unit_fast.capture import capture
from unit_fast.evaluation.triggers import Patch
from unit_fast.sites import insert_bounds


@pytest.fixture(scope="module")
def calibrated():
    model, digits = backdoored_digits()
    return model, digits, uf.calibrate(model, [digits.calibration])


def test_the_default_recipe_removes_a_backdoor(calibrated):
    # One validation sample of twenty, which the model is unsure of anyway, would keep these bounds wide.
    model, digits, bounds = calibrated
    accuracy, attack_success = accuracy_and_attack_success(model, digits)
    assert attack_success > 0.95, "the backdoor must work for the test to mean anything"
    sanitised = uf.sanitize(model, bounds, digits.test[0][:2], backend="eager")
    accuracy_after, attack_success_after = accuracy_and_attack_success(sanitised, digits)
    assert attack_success_after < 0.10
    assert accuracy - accuracy_after <= 0.03, "the tolerance, on samples that were not seen"


@pytest.mark.parametrize("seed", [1, 2])
def test_another_trigger_and_other_seeds(seed):
    trigger = Patch(size=2, row=0, col=0, value=1.0)
    model, digits = backdoored_digits(seed, trigger)
    bounds = uf.calibrate(model, [digits.calibration])
    sanitised = uf.sanitize(model, bounds, digits.test[0][:2], backend="eager")
    assert accuracy_and_attack_success(model, digits, trigger)[1] > 0.95
    accuracy_after, attack_success_after = accuracy_and_attack_success(sanitised, digits, trigger)
    assert attack_success_after < 0.10
    assert accuracy_and_attack_success(model, digits, trigger)[0] - accuracy_after <= 0.03


def test_the_bounds_keep_the_validation_part_within_the_tolerance(calibrated):
    model, digits, bounds = calibrated
    accuracy = bounds.metadata["accuracy"]
    assert accuracy["validation_before"] - accuracy["validation_after"] <= 0.03
    # The divergence that is promised, computed anew from the model and the graph.
    sanitised = insert_bounds(capture(model, digits.calibration[0][:2]), bounds)
    x = digits.calibration[0][split_by_class(digits.calibration[1], 0.8, 0).validation]
    with torch.no_grad():
        original, found = F.log_softmax(model(x), 1), F.log_softmax(sanitised(x), 1)
    of_each = F.kl_div(found, original, log_target=True, reduction="none").sum(1).sort().values
    assert float(of_each[:-1].mean()) == pytest.approx(bounds.metadata["validation_divergence"], abs=1e-5)
    assert float(of_each[:-1].mean()) <= 0.03 * log(2)


@pytest.mark.parametrize("granularity", ["neuron", "channel"])
@pytest.mark.parametrize("tolerance", [0.03, 0.1])
def test_held_by_the_accuracy_the_tolerance_is_kept_and_spent(granularity, tolerance):
    model, digits = backdoored_digits()
    x, y = (part[:600] for part in digits.test)
    bounds = uf.calibrate(model, [(x, y)], uf.Unit(tolerance=tolerance, hold="accuracy"), granularity)
    # Counted here, on the validation part as the split makes it.
    validation = split_by_class(y, 0.8, 0).validation
    x, y = x[validation], y[validation]
    with torch.no_grad():
        original, found = model(x).log_softmax(1), insert_bounds(capture(model, x[:2]), bounds)(x).log_softmax(1)
    before, after = (int((logits.argmax(1) == y).sum()) for logits in (original, found))
    divergence = F.kl_div(found, original, log_target=True, reduction="none").sum(1).sort().values[:-1].mean()
    lost, of_divergence = (before - after) / (tolerance * len(y)), float(divergence) / (6 * tolerance * log(2))
    assert max(lost, of_divergence) <= 1 + 1e-5, "kept"
    assert max(lost, of_divergence) >= 0.5, "spent, by half at least: a shift changes several samples at once"


@pytest.mark.parametrize(
    "settings",
    [
        {"tolerance": 0.1, "steps": 200},
        {"tolerance": 0.1, "learning_rate": 20.0, "steps": 30},
        {"tolerance": 0.03, "learning_rate": 10.0, "steps": 30, "hold": "divergence"},
    ],
    ids=str,
)
def test_too_many_and_too_large_steps_open_nothing_again(settings):
    model, digits = backdoored_digits()
    x, y = (part[:600] for part in digits.test)
    bounds = uf.calibrate(model, [(x, y)], uf.Unit(**{"hold": "accuracy", "batch_size": 64} | settings))
    accuracy = bounds.metadata["accuracy"]
    assert accuracy["validation_before"] - accuracy["validation_after"] <= settings["tolerance"] + 1e-9
    if settings.get("hold") is None:
        sanitised = uf.sanitize(model, bounds, x[:2], backend="eager")
        assert accuracy_and_attack_success(sanitised, digits)[1] < 0.05


def test_a_model_that_gets_all_right_may_have_been_trained_on_it(calibrated):
    model, digits, _ = calibrated
    unit = uf.Unit(hold="accuracy", tolerance=0.05, steps=1)
    with pytest.warns(uf.UnitFastWarning, match="gets all 20 samples for validation right; if it was trained on them"):
        uf.calibrate(model, [digits.calibration], unit)
    uf.calibrate(model, [digits.calibration[0]], unit)  # its own predictions are right by definition


@pytest.mark.filterwarnings("ignore:the model gets all")
def test_what_validation_alone_brings_out_is_within_the_tolerance():
    # A unit that is 0 on all fit samples decides eight of the 80 validation samples: 64 deviations bind on it.
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    x = torch.rand(400, 3, generator=generator) * 0.1
    x[:, 0] += y
    x[:, 2] = 0
    few = split_by_class(y, 0.8, 0).validation
    few = few[y[few] == 1][:8]
    x[few, 0], x[few, 2] = 0, 100
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[-5.0, 0.0, 0.0], [5.0, 0.0, 0.1]]))
        model[2].bias.copy_(torch.tensor([2.75, -2.75]))
    for hold in ("divergence", "accuracy"):
        bounds = uf.calibrate(model, [(x, y)], uf.Unit(hold=hold, steps=20))
        accuracy = bounds.metadata["accuracy"]
        assert accuracy["validation_before"] == 1
        assert accuracy["validation_after"] >= 0.97


def test_a_tolerance_that_leaves_no_more_than_chance_is_refused():
    model, digits = backdoored_digits()
    x, y = (part[:600] for part in digits.test)
    with pytest.raises(uf.DataError, match=r"right; a tolerance of 0\.95 leaves no more than the 1.\.\d% that always"):
        uf.calibrate(model, [(x, y)], uf.Unit(hold="accuracy", tolerance=0.95))
    with pytest.raises(uf.DataError, match=r"leaves no more than .* are the labels and the preprocessing those of its"):
        uf.calibrate(model, [(x, (y + 1) % 10)], uf.Unit(hold="accuracy"))


def test_an_accuracy_that_few_samples_cannot_tell_is_refused(calibrated):
    model, digits, _ = calibrated
    with pytest.raises(uf.DataError, match=r"of 20 samples for validation each is 5\.0% .* expected at least 34"):
        uf.calibrate(model, [digits.calibration], uf.Unit(hold="accuracy"))


def test_a_larger_tolerance_gives_tighter_bounds(calibrated):
    model, digits, bounds = calibrated
    loose = uf.calibrate(model, [digits.calibration], uf.Unit(tolerance=0.005))
    assert all(loose[name].mean() > bounds[name].mean() for name in bounds)


def test_the_same_seed_gives_the_same_bounds(calibrated):
    model, digits, bounds = calibrated
    again = uf.calibrate(model, [digits.calibration])
    other = uf.calibrate(model, [digits.calibration], seed=1)
    assert all(torch.equal(again[name], bounds[name]) for name in bounds)
    assert again.sha256 == bounds.sha256
    assert not all(torch.equal(other[name], bounds[name]) for name in bounds)


def test_labels_are_optional(calibrated):
    model, digits, _ = calibrated
    unlabelled = uf.calibrate(model, [digits.calibration[0]])
    assert unlabelled.metadata["samples"]["labels"] == "predicted by the model"
    sanitised = uf.sanitize(model, unlabelled, digits.test[0][:2], backend="eager")
    accuracy, attack_success = accuracy_and_attack_success(sanitised, digits)
    assert attack_success < 0.15
    assert accuracy > 0.94


@pytest.mark.parametrize("granularity", ["neuron", "channel", "tensor"])
def test_every_granularity_is_within_its_tolerance(granularity):
    model, digits = backdoored_digits()
    bounds = uf.calibrate(model, [digits.calibration], uf.Unit(steps=5), granularity)
    assert bounds.granularity == granularity
    assert bounds.metadata["validation_divergence"] <= bounds.metadata["tolerated_divergence"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0.0}, r"tolerance must lie between 0 and 1 .*got 0\.0"),
        ({"tolerance": 3}, r"tolerance must lie between 0 and 1 .*three points.*got 3"),
        ({"tolerance": float("nan")}, r"tolerance must lie between"),
        ({"recipe": "fast"}, r"recipe must be one of default, paper; got 'fast'"),
        ({"hold": "loss"}, r"hold must be one of divergence, accuracy, or None; got 'loss'"),
        ({"hold": "divergence", "recipe": "paper"}, "the paper's recipe holds the accuracy; leave hold out"),
        ({"steps": 0}, r"steps must be at least 1; got 0"),
        ({"batch_size": -1}, r"batch_size must be at least 1"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive"),
        ({"learning_rate": float("inf")}, r"learning_rate must be positive"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(uf.UnitFastError, match=message):
        uf.Unit(**settings)
