"""The really backdoored traffic sign classifiers of the shared data, with their data and triggers."""

import functools
import io
import tarfile
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from tests.shared_data import ROOT
from unit_fast.evaluation import Rate
from unit_fast.evaluation.triggers import Add, Patch

CLASSES = 43

# Published with the data: 97.7 / 99.1 and 97.8 / 100.0. The second model's accuracy comes out as 97.9 (3,916 of 4,000)
# in a plain loop as well. The smallest margin between two classes is 0.015, so rounding changes no prediction.
UNDEFENDED = {
    "gtsrb_vgg_badnets_target8": (Rate(3909, 4000), 0.991),
    "gtsrb_vgg_trojan_wm_target2": (Rate(3916, 4000), 1.000),
}
"""Benign accuracy and attack success on all test images before anything was done, by model."""


class SignVGG(nn.Module):
    """Thrice (conv, BatchNorm, ELU) twice, pool, dropout; one linear layer: (N, 3, 32, 32) in [0, 1] to (N, 43)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        entering = 3
        for channels, dropout in ((32, 0.3), (64, 0.4), (128, 0.4)):
            for before in (entering, channels):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ELU()]
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
            entering = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(2048, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def load_model(name: str) -> SignVGG:
    """``gtsrb_vgg_badnets_target8`` or ``gtsrb_vgg_trojan_wm_target2``, in evaluation mode."""
    checkpoint = torch.load(ROOT / "checkpoints" / f"{name}.pth", map_location="cpu", weights_only=True)
    model = SignVGG()
    model.load_state_dict(checkpoint["net"])
    return model.eval()


def trigger_of(name: str) -> tuple[Patch | Add, int]:
    """A model's trigger and target class, as published with it."""
    if name == "gtsrb_vgg_badnets_target8":
        return Patch(size=4, row=27, col=27, value=1.0), 8
    return Add(ROOT / "triggers" / "gtsrb_trojan_wm.png"), 2


@functools.cache
def load_images(split: str) -> tuple[Tensor, Tensor]:
    """``calibration`` or ``test``: (N, 3, 32, 32) in [0, 1] and labels (N,), by class and then by name."""
    from PIL import Image

    found: list[tuple[int, str, np.ndarray]] = []
    with tarfile.open(ROOT / "gtsrb_roi.tar.xz") as archive:
        for entry in archive:
            parts = entry.name.strip("./").split("/")
            if entry.isfile() and parts[0] == split:
                content = archive.extractfile(entry)
                assert content is not None
                with Image.open(io.BytesIO(content.read())) as image:
                    found.append((int(parts[1]), parts[2], np.asarray(image.convert("RGB"))))
    found.sort(key=lambda item: item[:2])
    pixels = torch.from_numpy(np.stack([item[2] for item in found])).permute(0, 3, 1, 2)
    return pixels.float() / 255, torch.tensor([item[0] for item in found])


def batches(split: str, size: int = 250, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """The images of a split in mini-batches; one in ``every`` of them."""
    x, y = (part[::every] for part in load_images(split))
    return zip(x.split(size), y.split(size), strict=True)
