"""The clean CIFAR-10 classifier of the shared data, with its images."""

import functools
import io
import tarfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.shared_data import ROOT

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters, which drops every other pixel and pads channels."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.grows = stride != 1 or entering != leaving
        self.padding = leaving // 4

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding)) if self.grows else x
        return F.relu(y + shortcut)


class ResNet20(nn.Module):
    """(N, 3, 32, 32), normalised by ImageNet's mean and deviation, to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        entering = 16
        for stage, leaving in enumerate((16, 32, 64), start=1):
            blocks = []
            for number in range(3):
                blocks.append(Block(entering, leaving, 2 if stage > 1 and number == 0 else 1))
                entering = leaving
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(y.mean((2, 3)))


def load_model() -> ResNet20:
    """``cifar10_resnet20_clean`` in evaluation mode."""
    checkpoint = torch.load(ROOT / "checkpoints" / "cifar10_resnet20_clean.pth", map_location="cpu", weights_only=True)
    model = ResNet20()
    model.load_state_dict({name.removeprefix("module."): value for name, value in checkpoint["state_dict"].items()})
    return model.eval()


def load_images(split: str, per_class: int) -> tuple[Tensor, Tensor]:
    """:func:`load_pixels`, normalised as the network takes them."""
    x, y = load_pixels(split, per_class)
    return (x - MEAN.reshape(-1, 1, 1)) / DEVIATION.reshape(-1, 1, 1), y


@functools.cache
def load_pixels(split: str, per_class: int) -> tuple[Tensor, Tensor]:
    """The first images of each class of ``train`` or ``test``: (N, 3, 32, 32) in [0, 1] and labels (N,), by class."""
    from PIL import Image

    found: dict[str, list[tuple[str, np.ndarray]]] = {name: [] for name in CLASSES}
    with tarfile.open(ROOT / "cifar10_jpeg.tar.xz") as archive:
        for entry in archive:
            parts = entry.name.strip("./").split("/")
            if entry.isfile() and parts[0] == split and len(found[parts[1]]) < per_class:
                content = archive.extractfile(entry)
                assert content is not None
                with Image.open(io.BytesIO(content.read())) as image:
                    found[parts[1]].append((parts[2], np.asarray(image.convert("RGB"))))
    pixels = np.stack([image for name in CLASSES for _, image in sorted(found[name], key=lambda item: item[0])])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return x, torch.arange(10).repeat_interleave(per_class)
