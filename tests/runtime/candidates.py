"""Candidates of auto and a clock that are made up."""

import torch

import unit_fast as uf
from tests.runtime.networks import OneConv, bounds_of, images
from unit_fast.runtime import automatic
from unit_fast.runtime.calls import Call
from unit_fast.runtime.explain import SiteNote


class Clock:
    """Moves only when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


CLOCK = Clock()


def candidate(name, seconds, error=None, missing=None):
    """A backend that takes ``seconds[batch]`` a call by the clock, and says its name."""

    class Candidate:
        def __init__(self, program):
            self.program = program

        @classmethod
        def unavailable(cls, device, dtype):  # noqa: ARG003 - the protocol's
            return missing

        def __call__(self, x):
            if error is not None:
                raise error
            CLOCK.now += seconds[len(x)] if isinstance(seconds, dict) else seconds
            return name

        def monitor(self, x):
            return name, torch.zeros(len(x), 1)

        def inspect(self, x):
            return (*self.monitor(x), torch.zeros(len(x), 1))

        def warmup(self, batch_sizes, monitor=False):  # noqa: ARG002 - the protocol's
            for size in batch_sizes:
                call = self.program.example.of_size(size)
                self(*call.args)

        def warm_inspect(self, batch_sizes):
            self.inspected = list(batch_sizes)

        def explain(self):
            return [SiteNote(site, "all", name, "") for site in self.program.bounds]

    return Candidate


def made_program():
    model = OneConv().eval()
    fast = uf.sanitize(model, bounds_of(model, images(1)), images(1), backend="eager")
    return automatic.Program(fast.graph_module, fast.bounds, Call.from_example(images(2)))
