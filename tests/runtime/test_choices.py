"""What auto keeps on disk for later processes, and what that holds for; by made-up candidates on the CPU."""

import sys
import warnings

import pytest
import torch

from tests.runtime.candidates import CLOCK, candidate
from tests.runtime.networks import images
from unit_fast.errors import BackendUnavailableError, FallbackWarning
from unit_fast.runtime import choices
from unit_fast.runtime.automatic import Automatic


def test_on_the_cpu_the_next_process_makes_only_what_was_chosen(choosing):
    pytest.importorskip("triton", reason="choices are kept where the kernels keep theirs")
    choosing(candidate("compile", 0.02), candidate("onnxruntime", 0.01)).warmup([1])
    later = choosing(candidate("compile", 0.0, error=AssertionError("made in vain")), candidate("onnxruntime", 0.01))
    before = CLOCK.now
    later.warmup([1])
    assert CLOCK.now - before < 0.05
    assert later(images(1)) == "onnxruntime"
    assert "onnxruntime 10 ms against compile 20 ms, as measured before" in later.explain()[0].why


@pytest.mark.parametrize("changed", ["threads", "processor", "version", "another candidate", "nothing"])
def test_on_the_cpu_a_choice_is_for_what_it_was_measured_on(choosing, monkeypatch, changed):
    pytest.importorskip("triton", reason="choices are kept where the kernels keep theirs")
    before = candidate("compile", 0.02), candidate("onnxruntime", 0.01)
    choosing(*before).warmup([1])
    if changed == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    elif changed == "processor":
        monkeypatch.setattr(choices, "processor", lambda: "another one")
    elif changed == "version":
        monkeypatch.setattr(choices, "version", lambda name: f"{name} 99")
    more = [candidate("openvino", 0.03)] if changed == "another candidate" else []
    later = choosing(*before, *more)
    later.warmup([1])
    assert ("as measured before" in later.explain()[0].why) == (changed == "nothing")


def test_without_triton_every_process_measures(choosing, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("unit_fast.kernels.dispatch")]:
        monkeypatch.delitem(sys.modules, name)  # to be imported anew, which fails
    monkeypatch.setitem(sys.modules, "triton", None)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is nothing to warn of
            auto = choosing(candidate("compile", 0.02), candidate("onnxruntime", 0.01))
        auto.warmup([1])
        assert auto(images(1)) == "onnxruntime"
        assert "as measured before" not in auto.explain()[0].why


def test_a_choice_that_was_made_between_given_candidates_is_not_kept(program, monkeypatch):
    monkeypatch.setattr(Automatic, "clock", CLOCK)
    given = {"onnxruntime": candidate("onnxruntime", 0.02), "openvino": candidate("openvino", 0.01)}
    for _ in range(2):
        auto = Automatic(program, given)
        auto.warmup([1])
        assert "as measured before" not in auto.explain()[0].why


def test_what_failed_in_one_process_is_tried_again_by_the_next(choosing):
    pytest.importorskip("triton", reason="choices are kept where the kernels keep theirs")
    others = candidate("compile", 0.02), candidate("onnxruntime", 0.03)
    with pytest.warns(FallbackWarning, match="without the openvino backend: no room"):
        choosing(*others, candidate("openvino", 0.01, BackendUnavailableError("no room"))).warmup([1])
    later = choosing(*others, candidate("openvino", 0.01))
    later.warmup([1])
    assert later(images(1)) == "openvino"


def test_threads_count_as_they_are_when_it_is_measured(choosing, monkeypatch):
    pytest.importorskip("triton", reason="choices are kept where the kernels keep theirs")
    both = candidate("compile", 0.02), candidate("onnxruntime", 0.01)
    auto = choosing(*both)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    auto.warmup([1])
    later = choosing(*both)
    later.warmup([1])
    assert "as measured before" in later.explain()[0].why


def test_without_a_place_for_choices_everything_goes_on_with_a_warning(choosing, monkeypatch):
    dispatch = pytest.importorskip("unit_fast.kernels.dispatch", reason="the kernels need Triton")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(dispatch, "cache_folder", homeless)
    with pytest.warns(FallbackWarning, match="is not kept, and every process measures: Could not determine home"):
        auto = choosing(candidate("compile", 0.02), candidate("onnxruntime", 0.01))
    auto.warmup([1])
    assert auto(images(1)) == "onnxruntime"
