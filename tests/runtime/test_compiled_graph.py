"""Around a compiled function: which inputs it is for, what else the model returns, threads. Nothing is compiled."""

import threading
import time

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unit_fast as uf
from tests.runtime.networks import OneConv, bounds_of, images
from tests.runtime.test_cuda_graphs import FakeFence, FakeGraph
from unit_fast.errors import FallbackWarning
from unit_fast.runtime import compiled
from unit_fast.runtime.cuda_graphs import GraphCache


@pytest.fixture
def compilations(monkeypatch):
    """What was compiled: in place of Inductor the graph itself."""
    made: list[compiled.Key] = []

    def itself(self, key, inputs, batch, dynamic):  # noqa: ARG001 - the compiler's
        made.append(key)
        time.sleep(0.02)
        return compiled._Variant(self._flat.module, key, None, (), str(batch))

    monkeypatch.setattr(compiled.CompiledGraph, "_compile", itself)
    monkeypatch.setattr(compiled.Compiled, "unavailable", lambda *_: None)
    return made


def made_by_compile(model: nn.Module) -> uf.SanitizedModel:
    return uf.sanitize(model.eval(), bounds_of(model, images(2)), images(2), backend="compile")


def test_an_input_on_another_device_is_refused_before_it_reaches_what_was_compiled(compilations):
    fast = made_by_compile(OneConv())
    expected = fast(images(2))
    for call in (fast, fast.monitor, fast.inspect):
        with pytest.raises(uf.DataError, match=r"input 0 is on meta and the model on cpu; move one"):
            call(images(2).to("meta"))
    assert torch.equal(fast(images(2)), expected)
    assert {device for key in compilations for _, _, device in key} == {torch.device("cpu")}


class WithConstants(OneConv):
    def forward(self, x: Tensor) -> tuple[None, Tensor, int, dict]:
        y = super().forward(x)
        return None, y, 7, {"again": y, "nothing": None, "samples": y.shape[0]}


def test_none_and_numbers_come_back_as_the_model_returns_them(compilations):
    fast = made_by_compile(WithConstants())
    expected = uf.sanitize(WithConstants().eval(), fast.bounds, images(2), backend="eager")(images(3))
    for result in (fast(images(3)), fast.monitor(images(3))[0], fast.inspect(images(3))[0]):
        nothing, y, seven, more = result
        assert (nothing, seven, more["nothing"], more["samples"]) == (None, 7, None, 3)
        assert torch.equal(y, expected[1])
        assert torch.equal(more["again"], y)
    assert len(compilations) == 3


class Ranked(OneConv):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = F.relu(super().forward(x)).topk(3)
        return values, indices


@pytest.mark.usefixtures("compilations")
def test_indices_in_another_order_where_values_tie_are_no_disagreement(monkeypatch):
    model = Ranked()
    itself = compiled.CompiledGraph._compile

    def other_order(self, key, inputs, batch, dynamic):
        variant = itself(self, key, inputs, batch, dynamic)

        def run(*x):
            values, indices = variant.function(*x)
            return values, (indices + 2) % 5

        return compiled._Variant(run, key, None, (), str(batch))

    monkeypatch.setattr(compiled.CompiledGraph, "_compile", other_order)
    fast = uf.sanitize(model.eval(), bounds_of(model, images(2), most=0.0), images(2), backend="compile")
    assert fast(images(2))[1].dtype == torch.int64


@pytest.mark.parametrize("method", ["monitor", "inspect"])
def test_threads_that_meet_in_a_first_call_compile_once(compilations, method):
    fast = made_by_compile(OneConv())
    threads = [threading.Thread(target=getattr(fast, method), args=(images(2),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compilations) == 1


class Mixed(OneConv):
    """A convolution's maps, then the same positions through a linear layer, channels behind."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.relu(self.conv(x))
        return self.head(F.relu(self.wide(maps.permute(0, 2, 3, 1))).mean((1, 2)))


@pytest.mark.parametrize("method", ["__call__", "monitor", "inspect"])
def test_inductor_reads_bounds_in_the_order_of_the_activations(monkeypatch, method):
    seen = []

    def itself(module, fakes, options):  # noqa: ARG001 - Inductor's
        seen.append(module)
        return module

    monkeypatch.setattr(compiled.torch._inductor, "compile", itself)
    monkeypatch.setattr(compiled.Compiled, "unavailable", lambda *_: None)
    fast = made_by_compile(Mixed())
    getattr(fast, method)(images(2))
    (module,) = seen
    maps, tokens = (module.get_buffer(f"bounds.{name}") for name in ("relu", "relu_1"))
    assert maps.shape == (8, 8, 8)
    assert maps.stride() == (1, 64, 8), "Inductor runs convolutions in channels_last on a CPU"
    assert tokens.shape == (8, 8, 6)
    assert tokens.is_contiguous()
    assert all(bound.is_contiguous() for name, bound in fast.graph_module.named_buffers() if "bounds" in name)


def test_warmed_sizes_run_code_of_their_own_and_all_others_what_is_for_any(monkeypatch):
    made, run = [], []

    def itself(self, key, inputs, batch, dynamic):  # noqa: ARG001 - the compiler's
        made.append((batch, dynamic))

        def function(*x):
            run.append((batch, dynamic))
            return self._flat.module(*x)

        return compiled._Variant(function, key, sympy.Symbol("s") if dynamic else None, (), "any" if dynamic else "1")

    monkeypatch.setattr(compiled.CompiledGraph, "_compile", itself)
    monkeypatch.setattr(compiled.Compiled, "unavailable", lambda *_: None)
    fast = made_by_compile(OneConv()).warmup([1, 16, 4])
    assert made == [(1, False), (16, True), (16, False), (4, False)]
    run.clear()
    for batch in (16, 7, 4, 1):
        fast(images(batch))
        fast(images(batch))
    assert run == [*[(16, False)] * 2, *[(16, True)] * 2, *[(4, False)] * 2, *[(1, False)] * 2]
    fast.warmup([5, 16, 6, 7])
    assert made[4:] == [(5, False), (6, False)], "each holds the weights once more, so that their number is limited"
    fast.monitor(images(3))
    assert made[6:] == [(3, True)]


def as_on_a_gpu(graph: compiled.CompiledGraph, capture) -> dict[int, FakeGraph]:
    """Let ``graph`` keep CUDA graphs, which ``capture`` makes up; returns them by batch size."""
    made: dict[int, FakeGraph] = {}

    def captured(function, tensors):
        made[len(tensors[0])] = capture(function, tensors)
        return made[len(tensors[0])]

    graph._graphs = GraphCache(graph._launched, graph._batched, captured, FakeFence(), lambda: False)
    return made


def test_what_was_warmed_up_is_replayed_and_smaller_batches_are_padded_to_it(compilations):
    fast = made_by_compile(OneConv())
    expected = uf.sanitize(OneConv().eval(), fast.bounds, images(2), backend="eager")
    graphs = as_on_a_gpu(fast._runner()._output, FakeGraph)

    fast.warmup([4])
    assert list(graphs) == [4]
    compiled_for = len(compilations)
    before = graphs[4].replays
    for size in (4, 3, 2):
        torch.testing.assert_close(fast(images(size)), expected(images(size)))
    assert graphs[4].replays == before + 3
    assert len(compilations) == compiled_for
    torch.testing.assert_close(fast(images(9)), expected(images(9)))  # too large for it
    assert graphs[4].replays == before + 3


def test_each_size_that_is_warmed_up_is_compiled_though_it_could_be_padded(compilations):
    fast = made_by_compile(OneConv())
    graphs = as_on_a_gpu(fast._runner()._output, FakeGraph)
    fast.warmup([4])
    fast.warmup([3])
    assert sorted(graphs) == [3, 4]
    assert {key[0][0][0] for key in compilations} == {3, 4}


def test_what_cannot_be_captured_runs_kernel_by_kernel(compilations):  # noqa: ARG001 - in place of Inductor
    fast = made_by_compile(OneConv())
    expected = uf.sanitize(OneConv().eval(), fast.bounds, images(2), backend="eager")

    def refused(function, tensors):  # noqa: ARG001 - GraphCache's
        raise RuntimeError("operation not permitted when stream is capturing")

    as_on_a_gpu(fast._runner()._output, refused)
    with pytest.warns(FallbackWarning, match="runs kernel by kernel.*not permitted when stream is capturing"):
        fast.warmup([4])
    torch.testing.assert_close(fast(images(4)), expected(images(4)))


def test_a_graph_for_the_cpu_is_compiled_with_freed_memory_kept(monkeypatch):
    kept = []

    def itself(self, key, inputs, batch, dynamic):  # noqa: ARG001 - the compiler's
        assert kept, "the compiler ran before"
        return compiled._Variant(self._flat.module, key, None, (), str(batch))

    monkeypatch.setattr(compiled, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(compiled.CompiledGraph, "_variant", itself)
    monkeypatch.setattr(compiled.Compiled, "unavailable", lambda *_: None)
    made_by_compile(OneConv())(images(2))
    assert kept


@pytest.mark.usefixtures("compilations")
def test_measures_in_half_precision_are_judged_by_its_rounding(monkeypatch):
    """They are float32, of activations that are not."""
    itself = compiled.CompiledGraph._compile

    def rounding_otherwise(self, key, inputs, batch, dynamic):
        variant = itself(self, key, inputs, batch, dynamic)

        def run(*given):
            output, counts, excess = variant.function(*given)
            return output, counts, 1.004 * excess

        return compiled._Variant(run, key, None, (), str(batch))

    monkeypatch.setattr(compiled.CompiledGraph, "_compile", rounding_otherwise)
    model = OneConv().eval()
    bounds = bounds_of(model, images(2), most=0.2)
    uf.sanitize(model, bounds, images(2), backend="compile", dtype=torch.float16).inspect(images(2))
    with pytest.raises(uf.ParityError, match="output 2 is off by"):
        uf.sanitize(model, bounds, images(2), backend="compile").inspect(images(2))
