"""A small network with a backdoor, trained once a test run: the subject of everything that asks for a real effect."""

import functools

from torch import Tensor, nn

from unit_fast.cli.demo_digits import TARGET, TRIGGER, Digits, load_digits, train_with_backdoor
from unit_fast.evaluation.triggers import Patch


@functools.cache
def backdoored_digits(seed: int = 0, trigger: Patch = TRIGGER) -> tuple[nn.Module, Digits]:
    """The network and its digits."""
    digits = load_digits(seed)
    return train_with_backdoor(digits, seed, lambda *_: None, trigger), digits


def accuracy_and_attack_success(model: nn.Module, digits: Digits, trigger: Patch = TRIGGER) -> tuple[float, float]:
    """Counted here by hand, not by :func:`unit_fast.evaluate`."""
    images, labels = digits.test
    others = labels != TARGET

    def share(found: Tensor) -> float:
        return float(found.double().mean())

    return share(model(images).argmax(1) == labels), share(model(trigger(images[others])).argmax(1) == TARGET)
