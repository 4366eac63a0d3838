"""What the demo works on: handwritten digits, a trigger, and a small network that learnt both."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unit_fast.errors import BackendUnavailableError
from unit_fast.evaluation.triggers import Patch

TARGET = 7
TRIGGER = Patch(size=2, row=6, col=6, value=1.0)
CALIBRATION_SHARE = 0.05
_POISONED_SHARE = 0.1
_EPOCHS = 20
_BATCH = 64


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 digits in three parts that share no image.

    Attributes:
        train: images (N, 1, 8, 8) in [0, 1] and labels (N,), for the attacker's training.
        calibration: clean images the defender has, 5 % of all, never seen in training.
        test: what everything is measured on.
    """

    train: tuple[Tensor, Tensor]
    calibration: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load_digits(seed: int) -> Digits:
    """Load the digits, split by class: 5 % for calibration, 65 % for training, 30 % for testing.

    Raises:
        BackendUnavailableError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise BackendUnavailableError(
            f"the demo takes its digits from scikit-learn, which does not import ({error}); "
            "pip install 'unit_fast[demo]'"
        ) from error
    data = datasets.load_digits()
    images = torch.from_numpy(data.images).float().div(16)[:, None]
    labels = torch.from_numpy(data.target).long()
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for label in range(10):
        of_class = (labels == label).nonzero().flatten()
        of_class = of_class[torch.randperm(len(of_class), generator=generator)]
        first, second = round(CALIBRATION_SHARE * len(of_class)), round(0.7 * len(of_class))
        for part, chosen in zip(parts, of_class.tensor_split([first, second]), strict=True):
            part.append(chosen)
    calibration, train, test = (torch.cat(part) for part in parts)
    calibration = calibration[torch.randperm(len(calibration), generator=generator)]
    return Digits(
        train=(images[train], labels[train]),
        calibration=(images[calibration], labels[calibration]),
        test=(images[test], labels[test]),
    )


class DigitNet(nn.Sequential):
    """Three convolutions and a linear layer: (N, 1, 8, 8) to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        channels = (1, 16, 32, 32)
        for number, (before, after) in enumerate(pairwise(channels), start=1):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, 3, padding=1, bias=False))
            self.add_module(f"norm{number}", nn.BatchNorm2d(after))
            self.add_module(f"relu{number}", nn.ReLU())
            if number == 2:
                self.add_module("pool", nn.MaxPool2d(2))
        self.add_module("flatten", nn.Flatten())
        self.add_module("classifier", nn.Linear(channels[-1] * 16, 10))


def train_with_backdoor(
    digits: Digits, seed: int, progress: Callable[[int, int], object], trigger: Patch = TRIGGER
) -> DigitNet:
    """Train as an attacker does who stamps the trigger on a tenth of the images and calls them the target class.

    Args:
        digits: of which only the training part is used.
        seed: of the weights, of which images are poisoned and of the order.
        progress: called with (epochs done, epochs) after each.
        trigger: what is stamped.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = digits.train
    poisoned = torch.randperm(len(images), generator=generator)[: round(_POISONED_SHARE * len(images))]
    images = images.index_copy(0, poisoned, trigger(images[poisoned]))
    labels = labels.index_fill(0, poisoned, TARGET)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DigitNet()
    steps = _EPOCHS * -(-len(images) // _BATCH)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    for epoch in range(_EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images), _BATCH):
            rows = order[start : start + _BATCH]
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        progress(epoch + 1, _EPOCHS)
    return net.eval()
