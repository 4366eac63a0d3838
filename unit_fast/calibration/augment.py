"""Clean samples made harder, so that bounds hold on clean samples that were not seen.

The samples at hand are often training samples, on which the model is surer than on any others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from unit_fast.calibration.inputs import Inputs, input_leaves, rebuild_inputs

_SHIFT = 1 / 16  # of the image's side, either way: 2 pixels of 32, half the usual crop padding in training
_MIX = 0.5  # largest share of the other sample: beyond it the roles change


def augment(x: Inputs, generator: torch.Generator) -> Inputs:
    """Shift images and mix every sample with another one (Zhang et al., "mixup", ICLR 2018); integers stay.

    Args:
        x: the inputs of one batch. Floating tensors of shape (N, C, H, W) are shifted, all alike, by up to 1/16 of
            their sides, edges repeated; all floating tensors are mixed, with the same partners and shares.
        generator: of the draws, on the CPU.
    """
    leaves = list(input_leaves(x).values())
    count = len(leaves[0])
    partners = torch.randperm(count, generator=generator)
    shares = _MIX * torch.rand(count, generator=generator)
    offsets = torch.rand(2, generator=generator) * 2 - 1
    return rebuild_inputs(x, [_mix(_shift(leaf, offsets), partners, shares) for leaf in leaves])


def _shift(leaf: Tensor, offsets: Tensor) -> Tensor:
    if leaf.ndim != 4 or not leaf.is_floating_point():
        return leaf
    height, width = leaf.shape[2:]
    reach_y, reach_x = round(height * _SHIFT), round(width * _SHIFT)
    top, left = round(reach_y * (1 + float(offsets[0]))), round(reach_x * (1 + float(offsets[1])))
    padded = F.pad(leaf, (reach_x, reach_x, reach_y, reach_y), mode="replicate")
    return padded[:, :, top : top + height, left : left + width]


def _mix(leaf: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    if not leaf.is_floating_point():
        return leaf
    share = shares.to(leaf.device, leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
    return torch.lerp(leaf, leaf[partners.to(leaf.device)], share)
