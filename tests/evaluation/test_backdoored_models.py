"""evaluate() on models that somebody else backdoored, against what was measured with them."""

import pytest
import torch
from torch import Tensor

from tests import gtsrb
from tests.shared_data import ROOT, needs_shared_data
from unit_fast.evaluation import Rate, evaluate

pytestmark = [needs_shared_data, pytest.mark.slow]

Image = pytest.importorskip("PIL.Image")


def stamped_by_hand(name: str, x: Tensor) -> Tensor:
    stamped = x.clone()
    if name == "gtsrb_vgg_badnets_target8":
        stamped[:, :, 27:31, 27:31] = 1.0
        return stamped
    with Image.open(ROOT / "triggers" / "gtsrb_trojan_wm.png") as image:
        for row in range(32):
            for col in range(32):
                stamped[:, :, row, col] += torch.tensor(image.getpixel((col, row))) / 255
    return stamped.clamp(0, 1)


@pytest.mark.parametrize("name", gtsrb.UNDEFENDED)
def test_accuracy_and_attack_are_as_published(name):
    benign, attack = gtsrb.UNDEFENDED[name]
    trigger, target = gtsrb.trigger_of(name)
    report = evaluate(gtsrb.load_model(name), gtsrb.batches("test"), trigger=trigger, target=target)
    assert report.benign == benign
    assert report.attack_success_rate == pytest.approx(attack, abs=0.0005)


@pytest.mark.parametrize("name", gtsrb.UNDEFENDED)
def test_every_count_is_that_of_a_plain_loop(name):
    model = gtsrb.load_model(name)
    trigger, target = gtsrb.trigger_of(name)
    x, y = (part[::10] for part in gtsrb.load_images("test"))
    report = evaluate(model, [(x, y)], trigger=trigger, target=target)
    with torch.no_grad():
        clean, triggered = model(x).argmax(1), model(stamped_by_hand(name, x)).argmax(1)
    others = y != target
    assert report.benign == Rate(int((clean == y).sum()), 400)
    assert report.attack == Rate(int((triggered == target)[others].sum()), int(others.sum()))
    assert report.robust == Rate(int((triggered == y)[others].sum()), int(others.sum()))
