"""Unit, whole: it removes a real backdoor, keeps its promises, and refuses what it cannot keep them with."""

import pytest
import torch
import torch.nn.functional as F

import unit_fast as uf
from tests.calibration.backdoored_digits import accuracy_and_attack_success, backdoored_digits
from unit_fast.capture import capture
from unit_fast.sites import insert_bounds


@pytest.fixture(scope="module")
def calibrated():
    model, digits = backdoored_digits()
    return model, digits, uf.calibrate(model, [digits.calibration])


def test_the_default_recipe_removes_a_backdoor(calibrated):
    model, digits, bounds = calibrated
    accuracy, attack_success = accuracy_and_attack_success(model, digits)
    assert attack_success > 0.95, "the backdoor must work for the test to mean anything"
    sanitised = uf.sanitize(model, bounds, digits.test[0][:2], backend="eager")
    accuracy_after, attack_success_after = accuracy_and_attack_success(sanitised, digits)
    assert attack_success_after < 0.10
    assert accuracy - accuracy_after <= 0.03, "the tolerance, on samples that were not seen"


def test_the_bounds_keep_the_validation_part_within_the_tolerance(calibrated):
    model, digits, bounds = calibrated
    accuracy = bounds.metadata["accuracy"]
    assert accuracy["validation_before"] - accuracy["validation_after"] <= 0.03
    # The divergence that is promised, computed anew from the model and the graph.
    captured = capture(model, digits.calibration[0][:2])
    sanitised = insert_bounds(captured, bounds)
    from unit_fast.calibration.split import split_by_class

    rows = split_by_class(digits.calibration[1], 0.8, 0).validation
    x = digits.calibration[0][rows]
    with torch.no_grad():
        divergence = F.kl_div(
            F.log_softmax(sanitised(x), 1), F.log_softmax(model(x), 1), log_target=True, reduction="batchmean"
        )
    assert float(divergence) == pytest.approx(bounds.metadata["validation_divergence"], abs=1e-5)
    assert float(divergence) <= 0.03 * torch.log(torch.tensor(2.0))


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
        ({"steps": 0}, r"steps must be at least 1; got 0"),
        ({"batch_size": -1}, r"batch_size must be at least 1"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive"),
        ({"learning_rate": float("inf")}, r"learning_rate must be positive"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(uf.UnitFastError, match=message):
        uf.Unit(**settings)
