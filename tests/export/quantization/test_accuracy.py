"""Which int8 files are refused for what they lose."""

import pytest

from unit_fast.errors import ParityError
from unit_fast.export.quantization.accuracy import check_accuracy
from unit_fast.export.report import Int8Accuracy


def _found(**changes: float | None) -> Int8Accuracy:
    given = {"samples": 200, "agreement": 1.0, "changed": 0.0, "limit": 0.05, "signal_to_noise": 25.0}
    return Int8Accuracy(**(given | {"accuracy_before": None, "accuracy_after": None} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"changed": 0.06}, "changes the class of 6.0%"),
        ({"agreement": None, "changed": None, "signal_to_noise": 19.0}, "19.0 dB.*at least 20 dB"),
        ({"signal_to_noise": -3.0}, "-3.0 dB.*at least 6 dB"),
        ({"accuracy_before": 0.9, "accuracy_after": 0.88}, "loses 2.0% of accuracy"),
    ],
    ids=["classes change", "outputs without classes", "one class for all, under noise", "accuracy is lost"],
)
def test_what_loses_too_much_is_refused(changes, message):
    with pytest.raises(ParityError, match=message):
        check_accuracy(_found(**changes))


@pytest.mark.parametrize(
    "changes",
    [{}, {"changed": 0.05}, {"signal_to_noise": 6.0}, {"accuracy_before": 0.9, "accuracy_after": 0.892}],
    ids=["nothing lost", "at the limit", "noisy, and the classes stay", "less than a point"],
)
def test_what_is_within_the_limits_passes(changes):
    check_accuracy(_found(**changes))
