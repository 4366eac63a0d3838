"""auto: the faster candidate per batch size, by a clock that the tests hold; what fails is dropped and said."""

import itertools
import threading
import time

import pytest
import torch

import unit_fast as uf
from tests.runtime.candidates import CLOCK, candidate
from tests.runtime.networks import OneConv, bounds_of, images, needs_compiler
from unit_fast.errors import BackendUnavailableError, DataError, FallbackWarning, ParityError
from unit_fast.runtime import backends
from unit_fast.runtime.automatic import Automatic
from unit_fast.runtime.eager import Eager


def test_each_batch_size_gets_the_faster(choosing):
    auto = choosing(candidate("compile", {1: 0.02, 16: 0.05}), candidate("onnxruntime", {1: 0.01, 16: 0.09}))
    auto.warmup([1, 16])
    assert auto(images(1)) == "onnxruntime"
    assert auto(images(16)) == "compile"
    text = "\n".join(note.why for note in auto.explain())
    assert "batch 1: onnxruntime 10 ms against compile 20 ms; batch 16: compile 50 ms against onnxruntime 90 ms" in text


def test_each_batch_size_gets_the_fastest_of_three(choosing):
    auto = choosing(
        candidate("compile", {1: 0.02, 4: 0.03, 16: 0.05}),
        candidate("onnxruntime", {1: 0.01, 4: 0.02, 16: 0.09}),
        candidate("openvino", {1: 0.015, 4: 0.01, 16: 0.08}),
    )
    assert auto.explain()[0].why == "until warmup() measures it against onnxruntime and openvino"
    auto.warmup([1, 4, 16])
    assert [auto(images(size)) for size in (1, 4, 16)] == ["onnxruntime", "openvino", "compile"]
    assert "batch 4: openvino 10 ms against onnxruntime 20 ms against compile 30 ms" in auto.explain()[0].why


def test_a_batch_size_is_measured_for_half_a_second_a_candidate(choosing):
    auto = choosing(candidate("compile", 0.004), candidate("onnxruntime", 0.005), candidate("openvino", 0.006))
    before = CLOCK.now
    auto.warmup([1])
    assert CLOCK.now - before == pytest.approx(3 * 0.5, rel=0.1)


def test_what_is_not_installed_is_no_candidate_and_nothing_to_warn_of(choosing):
    gone = candidate("openvino", 0.001, missing="openvino cannot be imported")
    auto = choosing(candidate("compile", 0.02), candidate("onnxruntime", 0.01), gone)
    auto.warmup([1])
    assert auto(images(1)) == "onnxruntime"
    assert "openvino" not in auto.explain()[0].why
    assert Automatic.unavailable(torch.device("cpu"), torch.float32) is None


@pytest.mark.parametrize("missing", [("onnxruntime", "openvino"), ("compile",), ("compile", "openvino")], ids="+".join)
def test_there_must_be_torch_compile_and_another(choosing, missing):
    names = ("compile", "onnxruntime", "openvino")
    choosing(*(candidate(name, 0.01, missing=f"no {name}" if name in missing else None) for name in names))
    reason = Automatic.unavailable(torch.device("cpu"), torch.float32)
    assert reason == "; ".join(f"no {name}" for name in missing)


@pytest.mark.parametrize(("batch", "taken"), [(2, "onnxruntime"), (3, "onnxruntime"), (7, "compile"), (100, "compile")])
def test_other_batch_sizes_follow_the_nearest(choosing, batch, taken):
    slow_at_16, slow_at_1 = {1: 0.01, 16: 0.09}, {1: 0.02, 16: 0.05}
    compile_, onnxruntime = (
        candidate(name, dict.fromkeys((2, 3, 7, 100), 0.0) | seconds)
        for name, seconds in (("compile", slow_at_1), ("onnxruntime", slow_at_16))
    )
    auto = choosing(compile_, onnxruntime)
    auto.warmup([1, 16])
    assert auto(images(batch)) == taken


def test_before_warmup_it_compiles_and_measures_nothing(choosing):
    auto = choosing(candidate("compile", 0.02), candidate("onnxruntime", 0.01))
    before = CLOCK.now
    assert auto(images(3)) == "compile"
    assert CLOCK.now - before == pytest.approx(0.02)
    assert "until warmup()" in auto.explain()[0].why


def test_the_faster_is_taken_however_close(choosing):
    auto = choosing(candidate("compile", 0.0100), candidate("onnxruntime", 0.0099))
    auto.warmup([1])
    assert auto(images(1)) == "onnxruntime"


def test_a_tie_goes_to_the_first(choosing):
    auto = choosing(candidate("compile", 0.01), candidate("onnxruntime", 0.01))
    auto.warmup([1])
    assert auto(images(1)) == "compile"


def test_what_is_close_is_measured_three_times_as_long_and_what_is_not_no_longer(choosing):
    auto = choosing(candidate("compile", 0.0040), candidate("onnxruntime", 0.0041), candidate("openvino", 0.0080))
    before = CLOCK.now
    auto.warmup([1])
    assert CLOCK.now - before == pytest.approx(2 * 1.5 + 0.5, rel=0.15)
    assert auto(images(1)) == "compile"


def test_what_is_slower_at_first_only_is_found_out_in_the_end(choosing):
    slow_at_first = {"calls": 0}

    class WarmsUp(candidate("onnxruntime", 0.0)):
        def __call__(self, x):  # noqa: ARG002 - the protocol's
            slow_at_first["calls"] += 1
            CLOCK.now += 0.0104 if slow_at_first["calls"] < 40 else 0.0090
            return "onnxruntime"

    auto = choosing(candidate("compile", 0.0100), WarmsUp)
    auto.warmup([1])
    assert auto(images(1)) == "onnxruntime"


def test_a_clock_that_slows_once_some_are_out_chooses_none_of_those(choosing):
    def slowing(name, seconds):
        class Slowing(candidate(name, 0.0)):
            def __call__(self, x):  # noqa: ARG002 - the protocol's
                CLOCK.now += seconds * (1.0 if CLOCK.now - start < 1.6 else 1.3)
                return name

        return Slowing

    start = CLOCK.now
    auto = choosing(slowing("compile", 0.0102), slowing("onnxruntime", 0.0100), slowing("openvino", 0.0110))
    auto.warmup([1])
    assert auto(images(1)) == "onnxruntime"
    assert auto.explain()[0].why.count(" ms") == 3


def test_what_is_never_chosen_is_let_go(choosing):
    auto = choosing(candidate("compile", 0.01), candidate("onnxruntime", 0.02))
    auto.warmup([1, 2])
    assert list(auto._made) == ["compile"]


def test_what_reads_the_clamps_is_kept(choosing):
    auto = choosing(candidate("compile", 0.02), candidate("onnxruntime", 0.01))
    auto.warmup([1], monitor=True)
    auto.warmup([2])
    assert set(auto._made) == {"compile", "onnxruntime"}
    auto = choosing(candidate("compile", 0.02), candidate("onnxruntime", 0.01))
    auto.warmup([1])
    auto.warm_inspect([1])
    inspecting = auto._made["compile"]
    auto.warmup([2])
    assert auto._made["compile"] is inspecting
    assert inspecting.inspected == [1]


@pytest.mark.parametrize("error", [ParityError("off by 0.3"), BackendUnavailableError("no such operator")], ids=repr)
def test_what_fails_is_dropped_with_a_warning(choosing, error):
    auto = choosing(candidate("compile", 0.02), candidate("onnxruntime", 0.01, error))
    with pytest.warns(FallbackWarning, match=f"without the onnxruntime backend: {error}"):
        auto.warmup([1])
    assert auto(images(1)) == "compile"
    auto.warmup([4])  # and is said once


def test_without_warmup_too(choosing):
    auto = choosing(candidate("compile", 0.02, ParityError("off")), candidate("onnxruntime", 0.01))
    with pytest.warns(FallbackWarning, match="without the compile backend: off"):
        assert auto(images(1)) == "onnxruntime"
    assert auto.monitor(images(2))[0] == "onnxruntime"
    assert auto.inspect(images(2))[0] == "onnxruntime"


def test_with_nothing_left_the_reference_runs(choosing, program):
    broken = candidate("broken", 0.01, ParityError("off"))
    auto = choosing(broken, broken)
    with pytest.warns(FallbackWarning):
        auto.warmup([1])
    assert torch.equal(auto(images(3)), program.module(images(3)))
    assert isinstance(auto._runner("eager"), Eager)


def test_explain_follows_what_was_dropped(choosing):
    broken = candidate("compile", 0.02, ParityError("off by 0.3"))
    auto = choosing(broken, candidate("onnxruntime", 0.01))
    with pytest.warns(FallbackWarning):
        auto(images(1))
    assert auto.explain()[0].runs == "onnxruntime"
    assert auto.explain()[0].why == "without compile: off by 0.3"
    auto = choosing(candidate("compile", 0.01), candidate("onnxruntime", 0.02))
    auto.warmup([1])
    auto._dropped["compile"] = "off by 0.3"
    assert auto.explain()[0].runs == "onnxruntime"


def test_with_one_dropped_the_others_are_still_measured(choosing):
    broken = candidate("openvino", 0.001, ParityError("off by 0.3"))
    auto = choosing(candidate("compile", 0.02), candidate("onnxruntime", 0.01), broken)
    with pytest.warns(FallbackWarning, match="without the openvino backend: off by 0.3"):
        auto.warmup([1])
    assert auto(images(1)) == "onnxruntime"
    assert auto.explain()[0].why.endswith("onnxruntime 10 ms against compile 20 ms; without openvino: off by 0.3")


def test_inputs_that_onnxruntime_refuses_are_compiled_and_the_others_are_not(choosing, monkeypatch):
    refusals = []
    sizes = candidate("onnxruntime", 0.01)

    class Narrow(sizes):
        def __call__(self, x):
            if len(x) > 1:
                refusals.append(len(x))
                raise DataError("invalid dimensions")
            return super().__call__(x)

    auto = choosing(candidate("compile", 0.02), Narrow)
    auto.warmup([1])
    assert [auto(images(size)) for size in (1, 3)] == ["onnxruntime", "compile"]
    assert set(refusals) == {3}
    refusals.clear()
    assert [auto(images(size)) for size in (3, 1)] == ["compile", "onnxruntime"]
    assert not refusals
    monkeypatch.setitem(auto._dropped, "compile", "off")
    assert torch.equal(auto(images(4)), auto._program.module(images(4)))


def test_several_threads_make_one_runner(choosing):
    made = []

    class Slow(candidate("compile", 0.01)):
        def __init__(self, program):
            made.append(program)
            time.sleep(0.05)
            super().__init__(program)

    auto = choosing(Slow, candidate("onnxruntime", 0.02))
    threads = [threading.Thread(target=auto, args=(images(1),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_auto_is_measured_where_there_is_a_choice(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(backends.Compiled, "unavailable", lambda *_: None)
    for there, gone in itertools.permutations((backends.OnnxSession, backends.OpenVinoSession)):
        with monkeypatch.context() as patch:
            patch.setattr(gone, "unavailable", lambda *_: "not installed")
            patch.setattr(there, "packages", ())
            assert backends.choose("auto", cpu) == "auto"
            why = f"the fastest of compile, {there.target} as warmup() measures them"
            assert backends.auto_choice(cpu) == ("auto", why)
            assert backends.choose("auto", cpu, torch.float64) == "compile"
    for session in (backends.OnnxSession, backends.OpenVinoSession):
        monkeypatch.setattr(session, "unavailable", lambda *_: "not installed")
    assert backends.choose("auto", cpu) == "compile"  # and nobody is warned of a package that is optional
    monkeypatch.setattr(backends.Compiled, "unavailable", lambda *_: "no compiler")
    with pytest.warns(FallbackWarning, match="^running by eager: no compiler; not installed$"):
        assert backends.choose("auto", cpu) == "eager"


def test_the_environment_names_what_auto_takes(monkeypatch):
    monkeypatch.setenv(backends.OVERRIDE, "eager")
    assert backends.choose("auto", torch.device("cpu")) == "eager"
    monkeypatch.setenv(backends.OVERRIDE, "")
    assert backends.choose("auto", torch.device("cpu"), torch.float64) in ("compile", "eager")
    monkeypatch.setenv(backends.OVERRIDE, "fast")
    with pytest.raises(BackendUnavailableError, match="UNIT_FAST_BACKEND in the environment is 'fast'; expected one"):
        backends.choose("auto", torch.device("cpu"))


@needs_compiler
@pytest.mark.slow
def test_real_candidates_agree_and_one_is_chosen():
    pytest.importorskip("onnxruntime")
    model = OneConv().eval()
    bounds = bounds_of(model, images(1))
    fast = uf.sanitize(model, bounds, images(2)).warmup([1])
    assert fast.backend == "auto"
    torch.testing.assert_close(
        fast(images(1)), uf.sanitize(model, bounds, images(1), backend="eager")(images(1)), rtol=1e-5, atol=1e-5
    )
    assert " ms against " in fast.explain()


def test_a_choice_for_all_sizes_is_given_up_once_it_fails(choosing):
    class Failing(candidate("onnxruntime", 0.01)):
        def __call__(self, x):
            if len(x) == 5:
                raise ParityError("off by 0.3")
            return super().__call__(x)

    auto = choosing(candidate("compile", 0.02), Failing)
    auto.warmup([1, 2])
    assert auto(images(7)) == "onnxruntime"
    with pytest.warns(FallbackWarning, match="without the onnxruntime backend: off by 0.3"):
        assert auto(images(5)) == "compile"
    assert auto(images(7)) == "compile"


def test_one_choice_for_all_sizes_is_called_straight(choosing, monkeypatch):
    auto = choosing(candidate("compile", 0.02), candidate("onnxruntime", 0.01))
    auto.warmup([1, 2])
    monkeypatch.setattr(auto, "_by_choice", None)
    monkeypatch.setattr(auto, "_name_for", None)
    assert [auto(images(size)) for size in (1, 2, 9)] == ["onnxruntime"] * 3


def test_sizes_with_choices_of_their_own_have_none_for_all(choosing):
    auto = choosing(candidate("compile", {1: 0.02, 2: 0.01}), candidate("onnxruntime", {1: 0.01, 2: 0.02}))
    auto.warmup([1])
    assert auto._for_all is not None
    auto.warmup([2])
    assert auto._for_all is None
    assert [auto(images(size)) for size in (1, 2)] == ["onnxruntime", "compile"]
