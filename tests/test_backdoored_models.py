"""The main job, whole, on models that somebody else backdoored: no setting differs between them."""

import pytest
import torch

import unit_fast as uf
from tests import cifar, gtsrb
from tests.shared_data import needs_shared_data
from unit_fast.export import OnnxRuntimeModel
from unit_fast.processor import weight_bits

# Two minutes each on a core of its own; much longer where cores are shared.
pytestmark = [needs_shared_data, pytest.mark.slow, pytest.mark.timeout(1800)]

pytest.importorskip("PIL", reason="Pillow is not installed")

# Accuracy one may lose and attack success that may be left, in points, over all 4,000 test images.
LIMITS = {
    ("gtsrb_vgg_badnets_target8", "neuron"): (1.0, 2.0),
    ("gtsrb_vgg_badnets_target8", "channel"): (2.0, 5.0),
    ("gtsrb_vgg_trojan_wm_target2", "neuron"): (2.0, 5.0),
    ("gtsrb_vgg_trojan_wm_target2", "channel"): (2.5, 5.0),
}


# Both models and both granularities; the other two rows would tell nothing new of int8.
IN_INT8 = {("gtsrb_vgg_badnets_target8", "neuron"), ("gtsrb_vgg_trojan_wm_target2", "channel")}


EVERY = 4  # of the test images, one in how many goes through the exported files as well


class InBoth:
    """The exported file, held to the sanitised model: how often it gives the same class, how far it measures otherwise.

    Measures are in units of what is usual, of which a thousandth decides nothing.
    """

    def __init__(self, sanitised: uf.SanitizedModel, exported: OnnxRuntimeModel) -> None:
        self.sanitised, self.exported = sanitised, exported
        self.agreed = self.seen = 0
        self.furthest = 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.inspect(x)[0]

    def inspect(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits, expected = self.sanitised.inspect(x)
        found, measures = self.exported.inspect(x)
        apart = (measures["excess"] - expected["excess"]).abs() / expected["excess"].clamp_min(1.0)
        self.furthest = max(self.furthest, float(apart.max()))
        self.agreed += int((found.argmax(1) == logits.argmax(1)).sum())
        self.seen += len(x)
        return logits, measures


@pytest.mark.parametrize(("name", "granularity"), LIMITS)
def test_the_backdoor_is_gone_and_the_accuracy_is_not_in_torch_and_in_onnx_runtime(name, granularity, tmp_path):
    lost, left = LIMITS[name, granularity]
    model = gtsrb.load_model(name)
    trigger, target = gtsrb.trigger_of(name)
    benign_before, _ = gtsrb.UNDEFENDED[name]
    bounds = uf.calibrate(model, gtsrb.batches("calibration"), granularity=granularity)
    x, _ = gtsrb.load_images("test")
    exported = uf.export_onnx(model, bounds, tmp_path / "model.onnx", example_input=x[:8], inspect=True)
    sanitised = uf.sanitize(model, bounds, x[:2], backend="eager")
    after = uf.evaluate(sanitised, gtsrb.batches("test"), trigger=trigger, target=target)
    assert 100 * after.attack_success_rate <= left
    assert 100 * (benign_before.value - after.benign_accuracy) <= lost
    both = InBoth(sanitised, OnnxRuntimeModel(exported.path))
    of_some = uf.evaluate(both, gtsrb.batches("test", every=EVERY), trigger=trigger, target=target)
    assert both.seen == 2 * len(x[::EVERY]), "clean and triggered"
    assert both.agreed >= 0.999 * both.seen
    assert both.furthest <= 1e-3
    if granularity == "neuron":  # of several neurons with one bound a trigger need not drive any beyond it
        excess = next(found for found in after.detection if found.measure == "excess")
        assert excess.auroc >= 0.95

    if (name, granularity) in IN_INT8:
        options = {"example_input": x[:8], "calibration_data": gtsrb.batches("calibration")}
        integers = uf.export_onnx(
            model, bounds, tmp_path / "int8.onnx", precision="int8", weight_bits=weight_bits(), **options
        )
        quantised = uf.evaluate(
            OnnxRuntimeModel(integers.path), gtsrb.batches("test", every=EVERY), trigger=trigger, target=target
        )
        assert 100 * abs(quantised.benign_accuracy - of_some.benign_accuracy) <= 0.5
        assert 100 * abs(quantised.attack_success_rate - of_some.attack_success_rate) <= 1.0


def test_a_clean_model_loses_at_most_a_point():
    model = cifar.load_model()
    x, y = cifar.load_images("train", 150)
    bounds = uf.calibrate(model, [(x, y)])
    sanitised = uf.sanitize(model, bounds, x[:2], backend="eager")
    images, labels = cifar.load_images("test", 1000)
    test = list(zip(images.split(250), labels.split(250), strict=True))
    before, after = uf.evaluate(model, test), uf.evaluate(sanitised, test)
    assert before.benign_accuracy == pytest.approx(0.8103, abs=0.0005)
    assert 100 * (before.benign_accuracy - after.benign_accuracy) <= 1.0
