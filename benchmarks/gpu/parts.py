"""What ``python -m benchmarks.gpu`` consists of, in the order of its worth: a run that is cut off lacks the end.

To add a part: a module with ``measure(session: Session) -> list[str]``, which writes its figures through
``session.write`` as they come, stops by itself when ``session.remaining`` is 0, and returns the lines to print; and a
line below.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from benchmarks.gpu.session import Session


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes:
        name: as ``--part`` and the files name it.
        module: that measures it; imported when it runs, since Triton decides then whether it interprets.
        seconds: its share of a whole run. A part that ends before leaves its time to the later ones; one that is
            named alone has all of it.
        by_default: whether it runs without being named.
    """

    name: str
    module: str
    seconds: float
    by_default: bool = True

    @property
    def measure(self) -> Callable[[Session], list[str]]:
        """The module's function."""
        found: Callable[[Session], list[str]] = import_module(self.module).measure
        return found


PARTS = (
    Part("environment", "benchmarks.gpu.environment", 30),
    Part("values", "benchmarks.gpu.values", 60),
    Part("tests", "benchmarks.gpu.tests", 80),
    Part("layers", "benchmarks.gpu.layers", 120),
    Part("dispatch", "benchmarks.gpu.dispatch", 90),  # before the models, which warm up from it
    Part("models", "benchmarks.gpu.models", 140),
    Part("profile", "benchmarks.gpu.profile", 20),
    Part("sanitizer", "benchmarks.gpu.sanitizer", 400, by_default=False),
)


def deadline(part: Part, later: Sequence[Part], now: float, ends: float) -> float:
    """When ``part`` must end, for those ``later`` to have their shares of the time until ``ends``."""
    return now + (ends - now) * part.seconds / sum(each.seconds for each in (part, *later))
