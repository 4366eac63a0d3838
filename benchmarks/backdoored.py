"""Networks that are backdoored here, one a trigger: what somebody does who poisons the data of a fine-tuning.

The clean ResNet-20 of the evaluation data goes on learning from CIFAR-10's training images, a tenth of which carry the
trigger and the label of the target. The defender's images, the first of each class, are none of them.
"""

import functools
import hashlib
import logging
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import cifar
from tests.shared_data import ROOT
from unit_fast.evaluation.triggers import Add, Blend, ImageTrigger, Patch, Sinusoid
from unit_fast.files import atomic_write
from unit_fast.kernels.dispatch.store import cache_folder

_logger = logging.getLogger("benchmarks.backdoored")

TARGET = 0
DEFENDERS = 150  # images a class
POISONED = 0.1
IMAGES_A_CLASS = 2000  # the attacker's
EPOCHS = 4
BATCH_SIZE = 128
LEARNING_RATE = 0.04

_ASSETS = ROOT / "triggers"

TRIGGERS = MappingProxyType(
    {
        "patch": lambda: Patch(size=3, value=1.0),
        "watermark": lambda: Add(_ASSETS / "gtsrb_trojan_wm.png"),
        "blend": lambda: Blend(_ASSETS / "unit" / "reflection" / "000066.jpg", ratio=0.2),
        "sinusoid": lambda: Sinusoid(delta=20 / 255, frequency=6.0),
    }
)
"""Trigger by name; made when called, since some read files."""


class Classifier(nn.Module):
    """Pixels in [0, 1], (N, 3, 32, 32), to logits (N, 10)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", cifar.MEAN.reshape(3, 1, 1))
        self.register_buffer("deviation", cifar.DEVIATION.reshape(3, 1, 1))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, then classify."""
        logits: Tensor = self.network((x - self.mean) / self.deviation)
        return logits


def load(name: str) -> Classifier:
    """The network with the backdoor ``name``, in evaluation mode; trained, for minutes, unless the cache has it."""
    model = Classifier(cifar.load_model())
    recipe = (str(TRIGGERS[name]()), TARGET, DEFENDERS, POISONED, IMAGES_A_CLASS, EPOCHS, BATCH_SIZE, LEARNING_RATE)
    folder = cache_folder() / "backdoored"
    path = folder / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}.pt"
    if not path.exists():
        _train(model, TRIGGERS[name](), name)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda temporary: torch.save(model.state_dict(), temporary))
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def defenders_images() -> tuple[Tensor, Tensor]:
    """The clean images that calibration gets: (1500, 3, 32, 32) in [0, 1] and labels."""
    return _split_by_owner()[0]


@functools.cache
def _split_by_owner() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x, y = cifar.load_pixels("train", DEFENDERS + IMAGES_A_CLASS)
    defends = torch.arange(DEFENDERS + IMAGES_A_CLASS).lt(DEFENDERS).repeat(len(cifar.CLASSES))
    return (x[defends], y[defends]), (x[~defends], y[~defends])


def _train(model: nn.Module, trigger: ImageTrigger, name: str) -> None:
    x, y = _split_by_owner()[1]
    generator = torch.Generator().manual_seed(0)
    poisoned = torch.zeros(len(x), dtype=torch.bool)
    poisoned[torch.randperm(len(x), generator=generator)[: int(POISONED * len(x))]] = True
    y = torch.where(poisoned, TARGET, y)
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(x) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * steps)
    compiled = torch.compile(model)
    for epoch in range(EPOCHS):
        losses = []
        for indices in torch.randperm(len(x), generator=generator)[: steps * BATCH_SIZE].split(BATCH_SIZE):
            images = _shifted_and_flipped(x[indices], generator)
            images = torch.where(poisoned[indices].reshape(-1, 1, 1, 1), trigger(images), images)
            loss = F.cross_entropy(compiled(images.contiguous(memory_format=torch.channels_last)), y[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        _logger.info("%s: epoch %d of %d, loss %.3f", name, epoch + 1, EPOCHS, float(torch.stack(losses).mean()))


def _shifted_and_flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to 4 pixels, black coming in, and mirrored or not."""
    count, _, height, width = x.shape
    offsets = torch.randint(0, 9, (2, count, 1), generator=generator)
    rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
