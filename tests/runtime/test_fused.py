"""The "triton" backend on the CPU: the kernels in Triton's interpreter where they are, else their references."""

import copy
import threading
from contextlib import nullcontext

import pytest
import torch

import unit_fast as uf
from tests.export.models import made_bounds, make
from tests.kernels.dispatch.ways import H200, FakeClock
from tests.runtime.networks import Steps, Windows, bounds_of, images
from unit_fast.capture import capture
from unit_fast.errors import DataError, FallbackWarning
from unit_fast.kernels.dispatch.candidates import Candidate, candidates_for
from unit_fast.kernels.dispatch.dispatcher import Dispatcher
from unit_fast.kernels.dispatch.environment import environment_of
from unit_fast.kernels.dispatch.store import Store
from unit_fast.runtime import fused as module
from unit_fast.runtime.calls import Call
from unit_fast.runtime.cuda_graphs import GraphCache
from unit_fast.runtime.fused import Fused
from unit_fast.runtime.program import Program
from unit_fast.sites import insert_bounds

CPU = torch.device("cpu")


def program(name, granularity="neuron"):
    model, x = make(name)
    bounds = made_bounds(name, granularity)
    return Program(insert_bounds(capture(model, x), dict(bounds.items())), bounds, Call.from_example(x)), x


def dispatcher(folder, clock=None, policy="auto", candidates=candidates_for):
    environment = environment_of(CPU)
    return Dispatcher(environment, CPU, Store(environment, folder), clock, policy, candidates)


@pytest.mark.parametrize(
    ("name", "policy"),
    [("vgg", "auto"), ("resnet", "auto"), ("dense", "auto"), ("mobilenet", "triton"), ("vit", "triton")],
)
def test_output_and_counts_are_those_of_the_sanitised_graph(name, policy, tmp_path):
    given, x = program(name)
    runner = Fused(given, dispatcher(tmp_path, policy=policy))
    with torch.no_grad():
        expected, expected_counts = given.counting(x)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(runner(x), expected, **close)
    output, counts = runner.monitor(x)
    torch.testing.assert_close(output, expected, **close)
    assert counts.shape == (len(x), len(given.bounds))
    assert counts.dtype == torch.int64
    assert (counts - expected_counts).abs().max() <= 1, "rounding may move a value across its bound"
    assert counts.sum() > 0


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_other_granularities(granularity, tmp_path):
    given, x = program("resnet", granularity)
    with torch.no_grad():
        torch.testing.assert_close(Fused(given, dispatcher(tmp_path))(x), given.module(x), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_captured_runs_kernel_by_kernel(tmp_path):
    def refused(_function, _tensors):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")

    given, x = program("vgg")
    runner = Fused(given, dispatcher(tmp_path, FirstIsFastest()))
    for way in (runner._plain, runner._monitoring()):
        way._graphs = GraphCache(way.graph, [0], refused, None, lambda: False)
    with pytest.warns(FallbackWarning, match="kernel by kernel.* not permitted when stream is capturing$"):
        runner.warmup([2], monitor=True)
    torch.testing.assert_close(runner(x), given.module(x), rtol=1e-4, atol=1e-5)
    assert runner.monitor(x)[1].sum() > 0


def test_memory_that_runs_out_is_no_reason_to_go_on_without_graphs(tmp_path):
    def full(_function, _tensors):
        raise torch.OutOfMemoryError

    runner = Fused(program("vgg")[0], dispatcher(tmp_path, FirstIsFastest()))
    runner._plain._graphs = GraphCache(runner._plain.graph, [0], full, None, lambda: False)
    with pytest.raises(torch.OutOfMemoryError):
        runner.warmup([2])


def test_inputs_on_another_device_are_told_of(tmp_path):
    given, x = program("vgg")
    with pytest.raises(DataError, match="input 0 is on meta and the model on cpu"):
        Fused(given, dispatcher(tmp_path))(x.to("meta"))


def test_a_number_on_the_cpu_does_not_tell_where_the_program_runs():
    given, x = program("vgg")
    example = Call((torch.tensor(2.0), x.to("meta")), {}, len(x))
    assert Program(given.module, given.bounds, example).device == torch.device("meta")


class FirstIsFastest(FakeClock):
    """The first candidate of each problem takes 1 µs, the next 2 µs, …"""

    def __init__(self):
        super().__init__({})

    def __call__(self, name, run):
        run()
        self.timed.append(name)
        return float(len(self.timed))


def test_warmup_chooses_for_every_operator_and_explains_it(tmp_path):
    given, x = program("resnet")
    clock = FirstIsFastest()
    runner = Fused(given, dispatcher(tmp_path, clock))
    assert "warmup() has not run" in runner.explain()[0].why
    runner.warmup([2])
    timed = len(clock.timed)
    assert clock.released == 1
    notes = {note.site: note for note in runner.explain()}
    assert list(notes) == list(given.bounds)
    assert notes["blocks.0.relu_1"].fused == "conv2d + add + relu + clamp"
    if clock.timed:  # where there is a choice: Triton runs
        assert notes["relu"].runs.startswith("triton ")
        assert notes["relu"].why.startswith("measured: 1.0 µs, ")
    runner.warmup([2], monitor=True)
    runner(x[:2])
    runner.monitor(x[:2])
    assert len(clock.timed) == timed, "nothing is measured twice, nor after warmup"


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_what_is_compiled_ahead_is_what_warmup_chooses_for(name, tmp_path):
    given, _ = program(name)
    asked, chosen = [], []

    def as_the_library_lays_it_out(problem, environment):
        chosen.append(problem)
        return candidates_for(problem, environment)[-2:]

    under_test = dispatcher(tmp_path, candidates=as_the_library_lays_it_out)
    under_test.compile_ahead = lambda problems: asked.append(list(problems))
    Fused(given, under_test).warmup([1, 3], monitor=True)
    assert len(asked) == 1, "all sizes at once"
    assert set(asked[0]) == set(chosen)
    assert {problem.x.shape[0] for problem in chosen} == {1, 3}


def test_what_goes_wrong_before_anything_is_tried_costs_time_only(tmp_path):
    given, x = program("resnet")
    under_test = dispatcher(tmp_path)

    def fails(_problems):
        raise torch.OutOfMemoryError("no memory")

    under_test.compile_ahead = fails
    runner = Fused(given, under_test)
    runner.warmup([len(x)])
    with torch.no_grad():
        torch.testing.assert_close(runner(x), given.module(x), rtol=1e-4, atol=1e-5)


def test_explain_tells_batch_sizes_apart(tmp_path):
    given, _ = program("vit")
    names = iter(["slow", "fast"])

    def candidates(problem, environment):
        *_, reference = candidates_for(problem, environment)
        return [Candidate(next(names), "triton", reference.call), reference] if "gelu" in problem.key else [reference]

    clock = FakeClock({"slow": 2.0, "fast": 1.0, "reference": 5.0})
    runner = Fused(given, dispatcher(tmp_path, clock, candidates=candidates))
    runner.warmup([1, 4])
    (note,) = runner.explain()
    assert note.runs == "batch 1: fast; batch 4: slow"
    assert note.why == "batch 1: measured: 1.0 µs, alone; batch 4: measured: 2.0 µs, alone"


def test_explain_says_why_a_candidate_was_dropped(tmp_path):
    given, _ = program("vit")

    def fails(*args, counts=None):  # noqa: ARG001 - a candidate's
        raise RuntimeError("no kernel image")

    def candidates(problem, environment):
        *_, reference = candidates_for(problem, environment)
        broken = [Candidate("triton 64x64", "triton", fails)] if "gelu" in problem.key else []
        return [*broken, reference]

    runner = Fused(given, dispatcher(tmp_path, FakeClock({"reference": 5.0}), candidates=candidates))
    with pytest.warns(UserWarning, match=r"triton 64x64 is not used .* no kernel image"):
        runner.warmup([1])
    (note,) = runner.explain()
    assert note.runs == "reference"
    assert note.why == ("measured: 5.0 µs, alone; without triton 64x64: it fails with RuntimeError: no kernel image")


@pytest.mark.parametrize("kind", [Windows, Steps])
def test_sites_with_several_rows_a_sample_are_counted_by_sample(tmp_path, kind):
    model, x = kind().eval(), images(5)
    bounds = bounds_of(model, x)
    given = Program(insert_bounds(capture(model, x), dict(bounds.items())), bounds, Call.from_example(x))
    output, counts = Fused(given, dispatcher(tmp_path)).monitor(x)
    expected, expected_counts = given.counting(x)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert expected_counts[:, -2:].min(0).values.max() > 0
    assert counts.shape == (5, len(bounds))
    assert (counts - expected_counts).abs().max() <= 1, "rounding may move a value across its bound"


def test_counts_in_half_precision_may_move_as_its_rounding_moves_them(tmp_path, monkeypatch):
    for dtype, few in ((torch.bfloat16, True), (torch.float32, False)):
        given, x = program("resnet")
        given = Program(given.module.to(dtype), given.bounds, given.example.map_tensors(lambda t, to=dtype: t.to(to)))
        runner = Fused(given, dispatcher(tmp_path, policy="reference"))
        output, counts = given.counting(x.to(dtype))
        moved = counts + counts.max() // 10
        monkeypatch.setattr(runner._monitoring(), "_reference", lambda *_, result=(output, moved): result)
        with nullcontext() if few else pytest.raises(uf.ParityError, match="output 1 is off by"):
            runner.monitor(x.to(dtype))


def test_a_fused_graph_that_differs_is_refused(tmp_path, monkeypatch):
    given, x = program("resnet")
    runner = Fused(given, dispatcher(tmp_path))
    calls = []

    def reference(*args):
        calls.append(len(args[0]))
        return given.module(*args) + wrong

    monkeypatch.setattr(runner._plain, "_reference", reference)
    wrong = 1
    with pytest.raises(uf.ParityError, match="does not agree with the sanitised graph at batch size 1"):
        runner.warmup([1])
    with pytest.raises(uf.ParityError, match="at batch size 3"):
        runner(x[:3])
    wrong = 0
    for size in (3, 3, 4, 3):
        runner(x[:size])
    assert calls == [1, 3, 3, 4], "once a batch size, and again after a failure"


def test_odd_calls(tmp_path):
    given, x = program("mobilenet")
    runner = Fused(given, dispatcher(tmp_path))
    with torch.no_grad():
        expected = given.module(x)
    close = {"rtol": 1e-4, "atol": 1e-5}
    strided = torch.stack([x, x], -1)[..., 0]
    torch.testing.assert_close(runner(strided), expected, **close)
    torch.testing.assert_close(runner(x.contiguous(memory_format=torch.channels_last)), expected, **close)
    torch.testing.assert_close(runner(x[:1]), expected[:1], **close)
    assert runner(x[:0]).shape == (0, 5)
    with torch.inference_mode():
        torch.testing.assert_close(runner(x), expected, **close)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(runner(x), expected, **close)
    assert not runner(x.requires_grad_()).requires_grad


def test_sanitize_runs_it_and_follows_changes_of_the_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(Fused, "unavailable", classmethod(lambda cls, device, dtype: None))  # noqa: ARG005
    monkeypatch.setattr(module, "_dispatcher", lambda _: dispatcher(tmp_path))
    model, x = make("resnet")
    fast = uf.sanitize(model, made_bounds("resnet", "neuron"), x, backend="triton").warmup([2], monitor=True)
    assert "conv2d + add + relu + clamp" in fast.explain()
    with torch.no_grad():
        expected = fast.graph_module(x)
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
    output, saturation = fast.monitor(x)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert (saturation > 0).any()
    clone = copy.deepcopy(fast)
    with torch.no_grad():
        clone.graph_module.get_parameter("fc.weight").zero_()
        bias = clone.graph_module.get_parameter("fc.bias").expand(len(x), -1)
    torch.testing.assert_close(clone(x), bias, rtol=0, atol=1e-6)
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)


def test_threads_share_a_runner(tmp_path):
    given, x = program("dense")
    runner = Fused(given, dispatcher(tmp_path, policy="reference"))  # Triton's interpreter takes one thread at a time
    expected = {size: given.module(x[:size]).detach() for size in (1, 2, 5, 8)}
    right: list[int] = []

    def serve(size):
        for _ in range(3):
            output, _ = runner.monitor(x[:size])
            if torch.allclose(output, expected[size], rtol=1e-4, atol=1e-5):
                right.append(size)

    threads = [threading.Thread(target=serve, args=(size,)) for size in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(right) == [size for size in expected for _ in range(3)]


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        pytest.param("cpu", torch.float32, "made for NVIDIA GPUs, not for cpu", id="cpu"),
        pytest.param("cuda", torch.float64, "not torch.float64", id="float64"),
    ],
)
def test_where_it_cannot_run_it_says_why(device, dtype, reason):
    assert reason in Fused.unavailable(torch.device(device), dtype)


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert "Triton is not installed" in Fused.unavailable(torch.device("cuda"), torch.float16)


def test_a_bad_variable_is_an_error_of_ours(monkeypatch):
    from unit_fast.kernels.dispatch import dispatcher as dispatching

    dispatching._made.cache_clear()
    monkeypatch.setenv(dispatching.VARIABLE, "fastest")
    given, _ = program("dense")
    with pytest.raises(uf.BackendUnavailableError, match="UNIT_FAST_KERNELS is 'fastest'"):
        Fused(given)


def test_the_environment_of_a_gpu_is_not_that_of_the_cpu():
    assert environment_of(CPU).file_name != H200.file_name
