"""A model whose every prediction is known beforehand, and data for it."""

import torch
from torch import Tensor, nn

from unit_fast.evaluation.triggers import Patch

CLASSES = 5


class PixelReader(nn.Module):
    """Sees class ``round(10 · first pixel)``, or the target when the last pixel is white and the backdoor is in."""

    def __init__(self, backdoor_to: int | None = 3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.dropout = nn.Dropout(0.9)
        self.norm = nn.BatchNorm2d(3)
        self.backdoor_to = backdoor_to
        self.seen_training: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.norm(x)
        self.seen_training.append(self.training or self.dropout.training or self.norm.training)
        seen = (x[:, 0, 0, 0] * self.scale).round().long()
        if self.backdoor_to is not None:
            seen = torch.where(x[:, 0, -1, -1] == 1, torch.full_like(seen, self.backdoor_to), seen)
        return torch.nn.functional.one_hot(seen, CLASSES).float()


STAMP = Patch(size=1, row=-1, col=-1)


def image_of(seen: int) -> Tensor:
    image = torch.full((3, 4, 4), 0.5)
    image[0, 0, 0] = seen / 10
    return image


def data(seen: list[int], labels: list[int], batch: int = 3) -> list[tuple[Tensor, Tensor]]:
    x, y = torch.stack([image_of(s) for s in seen]), torch.tensor(labels)
    return list(zip(x.split(batch), y.split(batch), strict=True))


#          right  right  right  wrong  target  target, wrong  right
LABELS = [0, 1, 2, 4, 3, 3, 4]
SEEN = [0, 1, 2, 3, 3, 0, 4]
