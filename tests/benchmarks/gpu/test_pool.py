"""A task that raises, dies or hangs costs its own outcome and no other."""

import time

from benchmarks.gpu.pool import run_tasks

ACT = "tests.benchmarks.gpu.pool_tasks:act"


def _outcomes(tasks, workers=1, task_seconds=30.0, seconds=60.0):
    deadline = time.monotonic() + seconds
    return list(run_tasks(ACT, tasks, workers=workers, task_seconds=task_seconds, deadline=deadline))


def test_one_process_serves_all_tasks_in_order():
    outcomes = _outcomes(["a", "b", "c"])
    assert [outcome.task for outcome in outcomes] == ["a", "b", "c"]
    assert len({outcome.result.split(" in ")[1] for outcome in outcomes}) == 1


def test_several_processes_share_the_tasks():
    outcomes = _outcomes([str(number) for number in range(12)], workers=3)
    assert sorted(int(outcome.task) for outcome in outcomes) == list(range(12))
    assert all(outcome.failure is None for outcome in outcomes)


def test_failures_are_outcomes():
    raised, died, fine = _outcomes(["raise", "die", "fine"])
    assert raised.failure == "ValueError: as asked"
    assert died.failure == "its process died (exit code 7)"
    assert (fine.failure, fine.result[:4]) == (None, "fine")


def test_a_task_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.pool.START_SECONDS", 3.0)
    hung, fine = _outcomes(["hang", "fine"], task_seconds=1.0)
    assert hung.failure == "took longer than 1 s and was stopped"
    assert fine.failure is None


def test_nothing_is_waited_for_beyond_the_deadline():
    started = time.monotonic()
    assert _outcomes(["hang", "fine"], seconds=2.0) == []
    assert time.monotonic() - started < 20
