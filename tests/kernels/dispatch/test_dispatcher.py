"""What is chosen, when it is measured, and that nothing unverified ever runs: with a clock and candidates made up."""

import threading
import warnings

import pytest
import torch

from tests.kernels.dispatch.ways import BOUND, CALL, H200, TIMES, FakeClock, Way, X, dispatcher, some_ways
from unit_fast.kernels.dispatch import dispatcher as module
from unit_fast.kernels.dispatch import run_conv2d, run_epilogue, run_linear, tuning
from unit_fast.kernels.dispatch.store import DispatchWarning, Record, write_table
from unit_fast.kernels.reference import conv2d_ref, epilogue_ref, linear_ref


def test_tuning_takes_the_fastest_and_says_why(tmp_path):
    ways, clock = some_ways(), FakeClock(TIMES)
    under_test = dispatcher(ways, tmp_path, clock)
    with tuning():
        choice = under_test.choose("epilogue", CALL)
    assert (choice.candidate.name, choice.source) == ("triton b", "measured")
    assert choice.why == "measured: 5.0 µs, lib + epilogue 6.0 µs"
    assert sorted(clock.timed) == sorted(TIMES.keys() - {"reference"}), "the reference is for need only"
    calls = ways[1].calls
    torch.testing.assert_close(under_test.run("epilogue", CALL), epilogue_ref(*CALL))
    assert ways[1].calls == calls + 1


def test_nothing_is_measured_outside_tuning(tmp_path):
    ways, clock = some_ways(), FakeClock(TIMES)
    choice = dispatcher(ways, tmp_path, clock).choose("epilogue", CALL)
    assert clock.timed == []
    assert (choice.candidate.name, choice.source) == ("lib + epilogue", "default")
    assert ways[2].calls == 1, "the default is verified before its first use"
    assert ways[0].calls == 0


def test_a_default_is_replaced_by_a_measurement(tmp_path):
    under_test = dispatcher(some_ways(), tmp_path, FakeClock(TIMES))
    under_test.run("epilogue", CALL)
    with tuning():
        under_test.run("epilogue", CALL)
    assert under_test.choose("epilogue", CALL).candidate.name == "triton b"


def test_tuning_is_of_one_thread(tmp_path):
    clock = FakeClock(TIMES)
    under_test = dispatcher(some_ways(), tmp_path, clock)
    with tuning():
        thread = threading.Thread(target=lambda: under_test.run("epilogue", CALL))
        thread.start()
        thread.join()
    assert clock.timed == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        pytest.param(1.0, "differs from the reference: wrong by up to 0.9", id="wrong values"),
        pytest.param(float("nan"), "differs from the reference: it leaves values unwritten", id="NaN"),
        pytest.param(RuntimeError("out of registers"), "fails with RuntimeError: out of registers", id="an error"),
    ],
)
def test_a_candidate_that_is_wrong_is_dropped_with_a_warning(tmp_path, wrong, words):
    ways = some_ways()
    ways[1].wrong = wrong
    under_test = dispatcher(ways, tmp_path, FakeClock(TIMES))
    with pytest.warns(DispatchWarning, match=words) as caught, tuning():
        choice = under_test.choose("epilogue", CALL)
    assert "triton b is not used for epilogue x=3x4:float32 bound=4:float32" in str(caught[0].message)
    assert choice.candidate.name == "lib + epilogue"
    assert "triton b" in choice.dropped
    calls = ways[1].calls
    under_test.run("epilogue", CALL)
    assert ways[1].calls == calls


def test_a_configuration_that_does_not_fit_is_left_out_in_silence(tmp_path):
    ways = some_ways()
    ways[1].wrong = ValueError("TMA cannot load this")
    with warnings.catch_warnings(), tuning():
        warnings.simplefilter("error")
        choice = dispatcher(ways, tmp_path, FakeClock(TIMES)).choose("epilogue", CALL)
    assert choice.dropped == {"triton b": "it cannot: TMA cannot load this"}


def test_a_wrong_library_leaves_the_default_to_who_is_right(tmp_path):
    ways = some_ways()
    ways[2].wrong = 1.0
    with pytest.warns(DispatchWarning, match=r"lib \+ epilogue is not used"):
        assert dispatcher(ways, tmp_path).choose("epilogue", CALL).candidate.name == "triton a"


def test_where_all_are_wrong_the_reference_runs(tmp_path):
    ways = some_ways()
    for way in ways[:3]:
        way.wrong = 1.0
    with pytest.warns(DispatchWarning), tuning():
        choice = dispatcher(ways, tmp_path, FakeClock(TIMES)).choose("epilogue", CALL)
    assert choice.candidate.name == "reference"


def test_a_candidate_that_fails_under_the_clock_is_dropped(tmp_path):
    class Breaking(FakeClock):
        def __call__(self, name, run):
            if name == "triton b":
                raise RuntimeError("cannot be captured")
            return super().__call__(name, run)

    with pytest.warns(DispatchWarning, match="cannot be captured"), tuning():
        choice = dispatcher(some_ways(), tmp_path, Breaking(TIMES)).choose("epilogue", CALL)
    assert choice.candidate.name == "lib + epilogue"


def test_a_measurement_serves_the_next_process(tmp_path):
    with tuning():
        dispatcher(some_ways(), tmp_path, FakeClock(TIMES)).choose("epilogue", CALL)
    ways, clock = some_ways(), FakeClock(TIMES)
    with tuning():
        choice = dispatcher(ways, tmp_path, clock).choose("epilogue", CALL)
    assert (choice.candidate.name, choice.source) == ("triton b", "cache")
    assert choice.why == "measured before: 5.0 µs, lib + epilogue 6.0 µs"
    assert clock.timed == []
    assert all(way.calls == 0 for way in ways), "what was verified in this environment is not verified again"


def test_a_remembered_candidate_that_is_gone_is_measured_anew(tmp_path):
    with tuning():
        dispatcher(some_ways(), tmp_path, FakeClock(TIMES)).choose("epilogue", CALL)
        without = [way for way in some_ways() if way.candidate.name != "triton b"]
        choice = dispatcher(without, tmp_path, FakeClock(TIMES)).choose("epilogue", CALL)
    assert (choice.candidate.name, choice.source) == ("lib + epilogue", "measured")


KEY = "epilogue x=3x4:float32 bound=4:float32"


def test_a_shipped_table_spares_the_measurement_but_not_the_verification(tmp_path):
    write_table(tmp_path / "tables" / "nvidia-h200.json", H200, {KEY: Record("triton a", {"triton a": 3.0})})
    ways, clock = some_ways(), FakeClock(TIMES)
    with tuning():
        choice = dispatcher(ways, tmp_path, clock, tables=tmp_path / "tables").choose("epilogue", CALL)
    assert (choice.candidate.name, choice.source) == ("triton a", "table")
    assert choice.why == "shipped table: 3.0 µs, alone"
    assert clock.timed == []
    assert ways[0].calls == 1


def test_a_shipped_choice_that_is_wrong_here_is_measured_instead(tmp_path):
    write_table(tmp_path / "tables" / "nvidia-h200.json", H200, {KEY: Record("triton a", {"triton a": 3.0})})
    ways = some_ways()
    ways[0].wrong = 1.0
    with pytest.warns(DispatchWarning, match="triton a is not used"), tuning():
        choice = dispatcher(ways, tmp_path, FakeClock(TIMES), tables=tmp_path / "tables").choose("epilogue", CALL)
    assert (choice.candidate.name, choice.source) == ("triton b", "measured")


def test_what_was_measured_here_goes_before_the_table(tmp_path):
    write_table(tmp_path / "tables" / "nvidia-h200.json", H200, {KEY: Record("triton a", {"triton a": 3.0})})
    with tuning():
        dispatcher(some_ways(), tmp_path, FakeClock(TIMES)).choose("epilogue", CALL)
    assert dispatcher(some_ways(), tmp_path, tables=tmp_path / "tables").choose("epilogue", CALL).source == "cache"


def test_within_a_capture_nothing_new_is_tried(tmp_path):
    ways, clock = some_ways(), FakeClock(TIMES)
    under_test = dispatcher(ways, tmp_path, clock, capturing=lambda: True)
    with tuning():
        torch.testing.assert_close(under_test.run("epilogue", CALL), epilogue_ref(*CALL))
    assert clock.timed == []
    assert [way.calls for way in ways] == [0, 0, 0, 1], "only the reference ran"


def test_what_was_run_before_a_capture_runs_within_it(tmp_path):
    capturing = False
    ways = some_ways()
    under_test = dispatcher(ways, tmp_path, FakeClock(TIMES), capturing=lambda: capturing)
    with tuning():
        under_test.run("epilogue", CALL)
    capturing, calls = True, ways[1].calls
    under_test.run("epilogue", CALL)
    assert ways[1].calls == calls + 1


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("triton", "triton b"), ("library", "lib + epilogue"), ("reference", "reference")],
)
def test_a_policy_restricts_the_candidates(tmp_path, policy, expected):
    clock = FakeClock(TIMES)
    with tuning():
        choice = dispatcher(some_ways(), tmp_path, clock, policy).choose("epilogue", CALL)
    assert choice.candidate.name == expected
    assert all(name.startswith(expected[:3]) for name in clock.timed)
    with tuning():  # and what it chose does not serve others
        assert dispatcher(some_ways(), tmp_path, FakeClock(TIMES)).choose("epilogue", CALL).source == "measured"


def test_a_policy_that_nobody_fits_leaves_the_reference(tmp_path):
    ways = [Way("lib", "library"), Way("reference", "reference")]
    assert dispatcher(ways, tmp_path, policy="triton").choose("epilogue", CALL).candidate.name == "reference"


def test_the_variable_is_read_and_checked(monkeypatch):
    monkeypatch.setenv(module.VARIABLE, "library")
    assert module.policy_from_environment() == "library"
    monkeypatch.setenv(module.VARIABLE, "")
    assert module.policy_from_environment() == "auto"
    monkeypatch.setenv(module.VARIABLE, "cublas")
    with pytest.raises(ValueError, match="UNIT_FAST_KERNELS is 'cublas'; expected one of auto, triton"):
        module.policy_from_environment()


def test_a_call_that_does_not_fit_is_refused(tmp_path):
    under_test = dispatcher(some_ways(), tmp_path)
    with pytest.raises(ValueError, match="does not broadcast to one sample"):
        under_test.run("epilogue", (X, None, None, None, torch.ones(5)))
    with pytest.raises(TypeError, match="floating"):
        under_test.run("epilogue", (X.int(),))


def test_it_tells_where_choices_come_from(tmp_path):
    write_table(tmp_path / "tables" / "nvidia-h200.json", H200, {KEY: Record("triton a"), "other": Record("triton b")})
    under_test = dispatcher(some_ways(), tmp_path, tables=tmp_path / "tables", policy="triton")
    found = under_test.describe()
    assert found["candidates"] == "triton (UNIT_FAST_KERNELS restricts them)"
    assert found["measured here"].startswith(f"0 problems, in {tmp_path}")
    assert found["shipped table"] == "2 problems"
    assert dispatcher(some_ways(), tmp_path).describe()["shipped table"] == "none for NVIDIA H200"


def test_the_memory_of_calls_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_SIGNATURES", 3)
    under_test = dispatcher(some_ways(), tmp_path)
    for rows in range(1, 8):
        under_test.run("epilogue", (X[:1].expand(rows, 4).contiguous(), None, None, None, BOUND))
    assert len(under_test._by_signature) <= 3


def test_threads_measure_a_problem_once(tmp_path):
    clock = FakeClock(TIMES)
    under_test = dispatcher(some_ways(), tmp_path, clock)

    def work() -> None:
        with tuning():
            under_test.run("epilogue", CALL)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(clock.timed) == sorted(TIMES.keys() - {"reference"}), "the reference is for need only"


def test_gradients_and_inference_mode_do_not_matter(tmp_path):
    with torch.inference_mode(), tuning():
        dispatcher(some_ways(), tmp_path, FakeClock(TIMES)).run("epilogue", CALL)


def test_the_entry_points_compute_what_the_references_do(device, randn):
    x, weight = randn((2, 8, 5, 5), torch.float32, 0), randn((4, 8, 3, 3), torch.float32, 1, 0.1)
    bias, bound = randn((4,), torch.float32, 2), randn((4, 3, 3), torch.float32, 3).abs()
    rows, matrix = randn((6, 8), torch.float32, 4), randn((4, 8), torch.float32, 5, 0.3)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(
        run_conv2d(x, weight, bias, None, bound), conv2d_ref(x, weight, bias, None, bound), **close
    )
    torch.testing.assert_close(run_linear(rows, matrix, bias), linear_ref(rows, matrix, bias), **close)
    torch.testing.assert_close(run_epilogue(x, None, bias[:, None, None][:1]), epilogue_ref(x, None, bias[:1]), **close)
    counts = torch.zeros(2, dtype=torch.int32, device=device)
    run_conv2d(x, weight, bias, None, bound, counts=counts)
    assert torch.equal(counts, (conv2d_ref(x, weight, bias) > bound).flatten(1).sum(1).int())
