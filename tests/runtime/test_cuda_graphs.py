"""The cache of CUDA graphs: sizes, padding, memory of one's own, order and threads, with graphs made up on the CPU."""

import logging
import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from unit_fast.runtime.cuda_graphs import CudaGraph, GraphCache


class FakeGraph:
    """Computes eagerly what a CUDA graph would, from and into memory of its own."""

    def __init__(self, function, tensors: Sequence[Tensor]) -> None:
        self._function = function
        self.inputs = [tensor.clone() for tensor in tensors]
        self.outputs = [output.clone() for output in function(self.inputs)]
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for own, new in zip(self.outputs, self._function(self.inputs), strict=True):
            own.copy_(new)


class FakeFence:
    """Notes whether anyone enters before the last has left."""

    def __init__(self) -> None:
        self.inside, self.overlaps, self.entered = 0, 0, 0

    def enter(self) -> None:
        self.inside += 1
        self.entered += 1
        self.overlaps += self.inside > 1

    def leave(self) -> None:
        self.inside -= 1


class Eager:
    """What is captured: two outputs of two inputs; ``mixing`` lets every sample see the others."""

    def __init__(self, mixing: bool = False) -> None:
        self.mixing = mixing
        self.calls = 0

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        self.calls += 1
        x, weight = tensors
        y = x * weight
        return (y - y.mean(0) if self.mixing else y), y.sum(1)


WEIGHT = torch.tensor([1.0, 2.0, 3.0])


def batch(size: int) -> list[Tensor]:
    return [torch.randn(size, 3, generator=torch.Generator().manual_seed(size)), WEIGHT]


class Setup:
    """A cache with all its parts at hand."""

    def __init__(self, sizes: Sequence[int] = (), mixing: bool = False, limit: int = 16, capturing: bool = False):
        self.eager, self.fence, self.graphs = Eager(mixing), FakeFence(), {}
        self.cache = GraphCache(self.eager, [0], self._capture, self.fence, lambda: capturing, limit)
        for size in sizes:
            self.cache.warm(batch(size))
        self.eager.calls = 0
        self.before = {size: graph.replays for size, graph in self.graphs.items()}

    def _capture(self, _function, tensors):
        graph = FakeGraph(Eager(self.eager.mixing), tensors)
        self.graphs[tensors[0].shape[0]] = graph
        return graph

    def used(self) -> list[int]:
        """Which graphs were replayed since."""
        return [size for size, graph in self.graphs.items() if graph.replays > self.before[size]]


def right(outputs: tuple[Tensor, ...], tensors: Sequence[Tensor], mixing: bool = False) -> None:
    for got, expected in zip(outputs, Eager(mixing)(tensors), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("size", "used"),
    [
        pytest.param(8, [8], id="captured"),
        pytest.param(7, [8], id="padded to the next"),
        pytest.param(4, [4], id="the exact one before a larger"),
        pytest.param(3, [4], id="padded to the nearer of two"),
        pytest.param(5, [8], id="more than half of it"),
        pytest.param(1, [], id="too much padding"),
        pytest.param(9, [], id="larger than all"),
        pytest.param(0, [], id="no sample"),
    ],
)
def test_which_graph_serves_a_batch(size, used):
    setup = Setup([4, 8])
    right(setup.cache(batch(size)), batch(size))
    assert setup.used() == used
    assert setup.eager.calls == (0 if used else 1), "launch by launch exactly where no graph is used"


def test_before_warmup_everything_runs_launch_by_launch_and_nothing_is_captured():
    setup = Setup()
    right(setup.cache(batch(3)), batch(3))
    assert setup.eager.calls == 1
    assert setup.graphs == {}


def test_a_network_that_mixes_samples_is_never_padded():
    setup = Setup([8], mixing=True)
    right(setup.cache(batch(8)), batch(8), mixing=True)
    right(setup.cache(batch(6)), batch(6), mixing=True)
    assert setup.eager.calls == 1


def test_padding_shows_nothing_of_earlier_requests():
    setup = Setup([8])
    setup.cache([torch.full((8, 3), float("nan")), WEIGHT])
    right(setup.cache(batch(5)), batch(5))


def test_inputs_and_outputs_are_nobody_elses_memory():
    setup = Setup([4])
    tensors = batch(4)
    first = setup.cache(tensors)
    kept = [output.clone() for output in first]
    graph = setup.graphs[4]
    pointers = {t.data_ptr() for t in (*graph.inputs, *graph.outputs)}
    assert not pointers & {t.data_ptr() for t in (*tensors, *first)}
    second = setup.cache([2 * tensors[0], WEIGHT])
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True)), "the next call overwrote the first"
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "tensors",
    [
        [torch.ones(4, 3, dtype=torch.float64), WEIGHT],
        [torch.ones(4, 1), WEIGHT],
        [torch.ones(4, 3), torch.ones(1)],
    ],
    ids=["another dtype", "another sample shape", "another unbatched shape"],
)
def test_what_the_graph_was_not_captured_for_runs_launch_by_launch(tensors):
    setup = Setup([4])
    right(setup.cache(tensors), tensors)
    assert setup.used() == []


def test_within_a_capture_of_the_callers_own_no_graph_is_replayed():
    setup = Setup([4], capturing=True)
    right(setup.cache(batch(4)), batch(4))
    assert setup.used() == []


def test_the_least_recently_used_graph_goes_first(caplog):
    setup = Setup([2, 4], limit=2)
    setup.cache(batch(2))
    with caplog.at_level(logging.WARNING, "unit_fast.runtime.cuda_graphs"):
        setup.cache.warm(batch(16))
    assert setup.cache.sizes == [2, 16]
    assert "batches of 4 is dropped: 2 are kept" in caplog.text
    right(setup.cache(batch(3)), batch(3))
    assert setup.eager.calls == 1, "a graph that is gone pads nothing"


def test_a_size_is_captured_once():
    setup = Setup([4])
    graph = setup.graphs[4]
    setup.cache.warm(batch(4))
    assert setup.graphs[4] is graph


def test_threads_get_their_own_results_in_order():
    setup = Setup([4, 8])
    sizes = (1, 3, 4, 5, 7, 8)
    right: list[int] = []

    def serve(size: int) -> None:
        for _ in range(50):
            outputs = setup.cache(batch(size))
            if all(torch.equal(a, b) for a, b in zip(outputs, Eager()(batch(size)), strict=True)):
                right.append(size)

    threads = [threading.Thread(target=serve, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(right) == [size for size in sizes for _ in range(50)]
    assert setup.fence.overlaps == 0
    assert setup.fence.entered > 0


def test_a_number_on_the_cpu_is_not_captured():
    with pytest.raises(RuntimeError, match="an input is on the cpu, and a graph would keep its value"):
        CudaGraph(Eager(), batch(2), pool=None)
