"""The split by class."""

import pytest
import torch

from unit_fast.calibration.split import split_by_class
from unit_fast.errors import DataError, UnitFastWarning

LABELS = torch.tensor([0] * 10 + [1] * 7 + [2] * 2 + [5] * 33)[
    torch.randperm(52, generator=torch.Generator().manual_seed(0))
]


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in-order"])
def test_four_fifths_of_every_class_rounded_down_go_to_fit(shuffle: bool) -> None:
    fit, validation = split_by_class(LABELS, shuffle=shuffle)
    assert {label: int((LABELS[fit] == label).sum()) for label in (0, 1, 2, 5)} == {0: 8, 1: 5, 2: 1, 5: 26}
    assert torch.equal(torch.cat([fit, validation]).sort().values, torch.arange(52))
    assert torch.equal(fit, fit.sort().values)


def test_as_published_the_first_of_each_class_fit() -> None:
    fit, validation = split_by_class(LABELS, shuffle=False)
    for label in (0, 1, 2, 5):
        assert fit[LABELS[fit] == label].max() < validation[LABELS[validation] == label].min()


def test_the_seed_alone_decides() -> None:
    first = split_by_class(LABELS, seed=3)
    torch.rand(1)
    again, other = split_by_class(LABELS, seed=3), split_by_class(LABELS, seed=4)
    assert torch.equal(first.fit, again.fit)
    assert not torch.equal(first.fit, other.fit)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_no_part_of_a_class_is_empty(fraction: float) -> None:
    fit, validation = split_by_class(LABELS, fraction)
    assert set(LABELS[fit].tolist()) == set(LABELS[validation].tolist()) == {0, 1, 2, 5}


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1.2, -0.1])
def test_fractions_out_of_range_are_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        split_by_class(LABELS, fraction)


def test_one_class_only_is_refused() -> None:
    with pytest.raises(DataError, match="all 9 calibration samples have the class 4"):
        split_by_class(torch.full((9,), 4))


def test_a_class_with_one_sample_is_refused_by_name() -> None:
    with pytest.raises(
        DataError, match=r"single sample cannot be split into fit and validation: 3, 7; give at least two"
    ):
        split_by_class(torch.tensor([0, 0, 7, 1, 1, 3]))


def test_many_such_classes_are_counted() -> None:
    with pytest.raises(DataError, match="and 5 more"):
        split_by_class(torch.cat([torch.arange(15), torch.tensor([20, 20])]))


def test_labels_nobody_chose_are_spared_with_a_warning() -> None:
    with pytest.warns(UnitFastWarning, match="single calibration sample take no part in validation: 1"):
        fit, validation = split_by_class(torch.tensor([0, 1, 0, 2, 2]), spare_single=True)
    assert 1 in fit.tolist()
    assert len(validation) == 2
    with pytest.raises(DataError, match="every class has a single sample"):
        split_by_class(torch.arange(5), spare_single=True)
