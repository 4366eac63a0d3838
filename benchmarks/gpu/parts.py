"""What ``python -m benchmarks.gpu`` consists of, in the order of its worth: a run that is cut off lacks the end.

To add a part: a module with ``measure(session: Session) -> list[str]``, which writes its figures through
``session.write`` as they come, stops by itself when ``session.remaining`` is 0, and returns the lines to print; and a
line below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from benchmarks.gpu.session import Session


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes:
        name: as ``--part`` and the files name it.
        module: that measures it; imported when it runs, since Triton decides then whether it interprets.
        seconds: it may take at most.
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
    Part("environment", "benchmarks.gpu.environment", 40),
    Part("values", "benchmarks.gpu.values", 130),
    Part("layers", "benchmarks.gpu.layers", 220),
    Part("dispatch", "benchmarks.gpu.dispatch", 540),
    Part("models", "benchmarks.gpu.models", 540, by_default=False),
    Part("sanitizer", "benchmarks.gpu.sanitizer", 400, by_default=False),
)
