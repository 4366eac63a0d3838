"""auto on a GPU, with candidates and a clock that are made up: who counts and inspects, and what is remembered."""

import pytest
import torch

from tests.runtime.candidates import CLOCK, candidate
from tests.runtime.networks import images
from unit_fast.errors import FallbackWarning, ParityError
from unit_fast.runtime import automatic, backends
from unit_fast.runtime.automatic import Automatic
from unit_fast.runtime.fused import Fused


def counting_only(name, seconds):
    """A backend that counts and does not inspect, as our kernels."""
    made = candidate(name, seconds)
    del made.inspect
    return made


def test_on_a_gpu_our_kernels_stand_beside_torch_compile():
    assert automatic.CANDIDATES["cuda"] == {"triton": Fused, "compile": automatic.Compiled}
    assert not hasattr(Fused, "inspect")


def test_on_a_gpu_auto_measures_where_both_can_run(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(automatic, "CANDIDATES", {"cuda": {name: candidate(name, 1) for name in ("triton", "compile")}})
    assert backends.auto_choice(gpu, torch.float16) == (
        "auto",
        "the fastest of triton, compile as warmup() measures them",
    )
    alone = {"triton": candidate("triton", 1), "compile": candidate("compile", 1, missing="no compiler")}
    monkeypatch.setattr(automatic, "CANDIDATES", {"cuda": alone})
    monkeypatch.setattr(Fused, "unavailable", lambda *_: None)
    assert backends.auto_choice(gpu, torch.float16) == ("triton", "no compiler")


def test_what_was_not_captured_on_a_gpu_goes_to_what_compiles_nothing(program):
    auto = Automatic(program, {"triton": candidate("triton", 1), "compile": candidate("compile", 1)})
    auto._device = torch.device("cuda")
    auto._choices = {32: automatic.Choice("compile", {})}
    for size, name in (
        (32, "compile"),
        (20, "compile"),
        (16, "compile"),
        (15, "triton"),
        (33, "triton"),
        (1, "triton"),
    ):
        assert auto(images(size)) == name


def test_what_only_counts_leaves_inspecting_to_another(program):
    auto = Automatic(program, {"triton": counting_only("triton", 0.01), "compile": candidate("compile", 0.02)})
    assert auto(images(1)) == "triton"
    assert auto.monitor(images(1))[0] == "triton"
    assert auto.inspect(images(1))[0] == "compile"
    auto._dropped = {"compile": "it cannot"}
    assert torch.equal(auto.inspect(images(1))[0], program.module(images(1)))  # eagerly: kernels do not inspect


@pytest.fixture
def memory(tmp_path):
    dispatch = pytest.importorskip("unit_fast.kernels.dispatch", reason="the kernels need Triton")
    return lambda: dispatch.Store(dispatch.environment_of(torch.device("cpu")), tmp_path)


def test_kernels_are_compiled_for_all_sizes_at_once_that_are_new(program, memory, monkeypatch):
    monkeypatch.setattr(Automatic, "clock", CLOCK)
    asked = []
    kernels, compiled = candidate("triton", 0.01), candidate("compile", 0.02)
    kernels.compile_ahead = lambda _self, sizes, _monitor: asked.append(list(sizes))
    auto = Automatic(program, {"triton": kernels, "compile": compiled}, memory())
    auto.warmup([1, 16])
    assert asked == [[1, 16]]
    Automatic(program, {"triton": kernels, "compile": compiled}, memory()).warmup([1, 16, 32])
    assert asked == [[1, 16], [32]]


def test_kernels_that_cannot_be_compiled_for_are_dropped(program, monkeypatch):
    monkeypatch.setattr(Automatic, "clock", CLOCK)

    def fails(_self, _sizes, _monitor):
        raise ParityError("nothing fits")

    kernels = candidate("triton", 0.01)
    kernels.compile_ahead = fails
    auto = Automatic(program, {"triton": kernels, "compile": candidate("compile", 0.02)})
    with pytest.warns(FallbackWarning, match="without the triton backend: nothing fits"):
        auto.warmup([1])
    assert auto(images(1)) == "compile"


def test_the_next_process_makes_only_what_was_chosen(program, memory, monkeypatch):
    monkeypatch.setattr(Automatic, "clock", CLOCK)
    slow_at_1 = candidate("triton", {1: 0.03, 16: 0.04})
    Automatic(program, {"triton": slow_at_1, "compile": candidate("compile", {1: 0.02, 16: 0.05})}, memory()).warmup(
        [1, 16]
    )

    class Unwanted:
        def __init__(self, _program):
            raise AssertionError("made although another was chosen")

    for size, name, text in (
        (1, "compile", "batch 1: compile 20 ms against triton 30 ms, as measured before"),
        (16, "triton", "batch 16: triton 40 ms against compile 50 ms, as measured before"),
    ):
        others = {"triton": Unwanted, "compile": Unwanted} | {name: candidate(name, 0.01)}
        later = Automatic(program, others, memory())
        before = CLOCK.now
        later.warmup([size])
        assert CLOCK.now - before < 0.05
        assert later(images(size)) == name
        assert text in later.explain()[0].why


def test_a_remembered_choice_that_fails_is_dropped_and_the_others_are_measured(program, memory, monkeypatch):
    monkeypatch.setattr(Automatic, "clock", CLOCK)
    others = {"triton": candidate("triton", 0.02), "eager too": candidate("eager too", 0.03)}
    Automatic(program, {"compile": candidate("compile", 0.01), **others}, memory()).warmup([1])
    wrong = candidate("compile", 0.01, error=ParityError("it is wrong now"))
    later = Automatic(program, {"compile": wrong, **others}, memory())
    with pytest.warns(FallbackWarning, match="running without the compile backend: it is wrong now"):
        later.warmup([1])
    assert later(images(1)) == "triton"


def test_other_sizes_dtypes_and_bounds_have_choices_of_their_own(program, memory, monkeypatch):
    monkeypatch.setattr(Automatic, "clock", CLOCK)
    both = {"triton": candidate("triton", 0.02), "compile": candidate("compile", 0.01)}
    Automatic(program, both, memory()).warmup([1])
    (key,) = memory().records()
    assert program.bounds.fingerprint.sha256 in key
    assert key.startswith("1 of ")
    for part in (program.bounds.granularity, "torch.float32"):
        assert part in key
    later = Automatic(program, both, memory())
    later.warmup([2])
    assert "as measured before" not in later.explain()[0].why
    assert len(memory().records()) == 2
