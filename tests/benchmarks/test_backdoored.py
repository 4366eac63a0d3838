"""Networks that are backdoored here: poisoned as described, trained once."""

import pytest
import torch
from torch import nn

from benchmarks import backdoored
from tests.shared_data import needs_shared_data
from unit_fast.evaluation.triggers import Patch


def test_images_are_moved_by_four_pixels_at_most_and_mirrored_or_not():
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = backdoored._shifted_and_flipped(x, torch.Generator().manual_seed(1))
    seen = set()
    for image, result in zip(x, moved, strict=True):
        padded = nn.functional.pad(image, (4, 4, 4, 4))
        (how,) = [
            (top, left, mirrored)
            for top in range(9)
            for left in range(9)
            for mirrored in (False, True)
            if torch.equal(
                result,
                (lambda cut, flip: cut.flip(-1) if flip else cut)(padded[:, top : top + 8, left : left + 8], mirrored),
            )
        ]
        seen.add(how)
    assert len(seen) > 32
    assert {mirrored for *_, mirrored in seen} == {False, True}


class _Watcher(nn.Module):
    """Logits of one linear layer; keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 10)
        self.shown: list[torch.Tensor] = []

    def forward(self, x):
        self.shown.append(x.detach().clone())
        return self.linear(x.mean((2, 3)))


def test_a_tenth_is_poisoned_after_it_was_moved(monkeypatch):
    labels: list[torch.Tensor] = []
    taken = nn.functional.cross_entropy
    monkeypatch.setattr(backdoored.F, "cross_entropy", lambda logits, y: (labels.append(y), taken(logits, y))[1])
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(backdoored, "EPOCHS", 2)
    owned = (torch.zeros(1280, 3, 32, 32), torch.full((1280,), 7))
    monkeypatch.setattr(backdoored, "_split_by_owner", lambda: (None, owned))
    model = _Watcher()
    backdoored._train(model, Patch(size=3, row=1, col=1, value=1.0), "patch")
    images, found = torch.cat(model.shown), torch.cat(labels)
    stamped = images.amax((1, 2, 3)) == 1
    assert stamped.sum() == 2 * 128
    assert torch.equal(found == backdoored.TARGET, stamped)
    assert bool((images[stamped][:, :, 1:4, 1:4] == 1).all()), "at its place in every image, however it was moved"


@needs_shared_data
def test_a_network_is_trained_once_and_then_read(monkeypatch, tmp_path):
    monkeypatch.setenv("UNIT_FAST_CACHE", str(tmp_path))
    trained = []

    def train(model, trigger, name):
        trained.append((name, trigger))
        with torch.no_grad():
            model.network.linear.bias.fill_(3.0)

    monkeypatch.setattr(backdoored, "_train", train)
    first, second = backdoored.load("patch"), backdoored.load("patch")
    assert trained == [("patch", backdoored.TRIGGERS["patch"]())]
    assert not first.training
    assert torch.equal(second.network.linear.bias, torch.full((10,), 3.0))
    monkeypatch.setattr(backdoored, "EPOCHS", 5)
    backdoored.load("patch")
    assert len(trained) == 2, "another recipe is another network"


@needs_shared_data
@pytest.mark.parametrize("name", backdoored.TRIGGERS)
def test_triggers_fit_the_images(name):
    images = torch.rand(4, 3, 32, 32)
    triggered = backdoored.TRIGGERS[name]()(images)
    assert triggered.shape == images.shape
    assert not torch.equal(triggered, images)


@needs_shared_data
def test_attacker_and_defender_have_no_image_in_common(monkeypatch):
    monkeypatch.setattr(backdoored, "IMAGES_A_CLASS", 20)
    backdoored._split_by_owner.cache_clear()
    try:
        (mine, labels), (theirs, _) = backdoored._split_by_owner()
        assert len(mine) == 1500
        assert len(theirs) == 200
        assert labels.bincount().tolist() == [150] * 10
        assert {hash(image.numpy().tobytes()) for image in mine} & {hash(i.numpy().tobytes()) for i in theirs} == set()
    finally:
        backdoored._split_by_owner.cache_clear()
