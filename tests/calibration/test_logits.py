import pytest
import torch

from unit_fast.calibration.logits import check_logits, default_logits
from unit_fast.errors import DataError

SCORES = torch.rand(4, 3)


@pytest.mark.parametrize(
    "output",
    [SCORES, {"logits": SCORES, "loss": torch.tensor(1.0)}, {"out": SCORES}, (SCORES,), [SCORES]],
    ids=["tensor", "logits-item", "only-item", "tuple-of-one", "list-of-one"],
)
def test_scores_are_found(output: object) -> None:
    assert default_logits(output) is SCORES


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((SCORES, SCORES), "returns a tuple; say where"),
        ({"a": SCORES, "b": SCORES}, "returns a dict with a, b; say where"),
        (torch.rand(4), r"got \(4,\)"),
        (torch.rand(4, 1), r"at least 2 classes, got \(4, 1\)"),
        (torch.rand(4, 3, 8, 8), r"got \(4, 3, 8, 8\)"),
    ],
    ids=["several", "several-names", "one-dimension", "one-score", "segmentation"],
)
def test_what_holds_no_scores_is_refused(output: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        default_logits(output)


def test_scores_with_two_dimensions_pass() -> None:
    assert check_logits(SCORES) is SCORES
