"""Split the calibration set by class into fit and validation."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from unit_fast.errors import DataError, UnitFastWarning


class Split(NamedTuple):
    """Sample indices, int64 on the CPU, ascending, disjoint and together all samples."""

    fit: Tensor
    """(F,) the samples that bounds are fitted on."""
    validation: Tensor
    """(V,) the samples that they are judged by."""


def split_by_class(
    labels: Tensor, fraction: float = 0.8, seed: int = 0, *, shuffle: bool = True, spare_single: bool = False
) -> Split:
    """Take int(fraction · n) of the n samples of each class for fit, at least one for each part.

    Args:
        labels: (N,) class indices.
        fraction: share of the fit part, in (0, 1); 0.8 in the UNIT paper (section 4.1).
        seed: of the draw.
        shuffle: draw the fit part; False takes the first samples of each class in the set's order, as published.
        spare_single: a class with a single sample goes to fit with a warning, for labels that nobody chose (the
            model's own predictions); otherwise it is an error.

    Raises:
        DataError: one class only, or a class with a single sample.
    """
    if not 0 < fraction < 1:
        raise DataError(f"fraction must lie between 0 and 1, both excluded; got {fraction}")
    classes, counts = torch.unique(labels, return_counts=True)
    if len(classes) < 2 and spare_single:
        raise DataError(
            f"the model gives all {len(labels)} calibration samples the class {int(classes[0])}; give labels, "
            "or samples of several classes"
        )
    if len(classes) < 2:
        raise DataError(
            f"all {len(labels)} calibration samples have the class {int(classes[0]) if len(classes) else 'none'}; "
            "bounds need samples of at least two classes, better of all"
        )
    singles = classes[counts == 1].tolist()
    if singles and not spare_single:
        raise DataError(
            f"classes with a single sample cannot be split into fit and validation: {_some(singles)}; give at least "
            "two samples of each class (ten or more are better), or leave these classes out"
        )
    if len(singles) == len(classes):
        raise DataError("every class has a single sample: nothing is left to validate on; give more samples")
    if singles:
        warnings.warn(
            f"classes that the model gives a single calibration sample take no part in validation: {_some(singles)}",
            UnitFastWarning,
            stacklevel=2,
        )
    generator = torch.Generator().manual_seed(seed)
    in_fit = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in zip(classes.tolist(), counts.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        if shuffle:
            members = members[torch.randperm(count, generator=generator)]
        in_fit[members[: max(1, min(int(fraction * count), count - 1))]] = True
    return Split(in_fit.nonzero().flatten(), (~in_fit).nonzero().flatten())


def _some(classes: list[int]) -> str:
    shown = ", ".join(map(str, classes[:10]))
    return shown if len(classes) <= 10 else f"{shown} and {len(classes) - 10} more"
