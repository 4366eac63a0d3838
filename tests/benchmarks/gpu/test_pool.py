"""A task that raises, dies or hangs costs its own outcome and no other."""

import os
import signal
import time
from itertools import pairwise

from benchmarks.gpu.pool import alone, run_tasks

ACT = "tests.benchmarks.gpu.pool_tasks:act"


def _outcomes(tasks, workers=1, task_seconds=30.0, seconds=60.0, **options):
    deadline = time.monotonic() + seconds
    return list(run_tasks(ACT, tasks, workers=workers, task_seconds=task_seconds, deadline=deadline, **options))


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


def test_tasks_of_a_line_have_a_process_to_themselves_and_wait_for_each_other():
    tasks = ["a1", "a2", "a3", "b1", "b2", "c1"]
    outcomes = _outcomes(tasks, workers=2, line_of=lambda task: task[0])
    processes = {}
    for outcome in outcomes:
        processes.setdefault(outcome.task[0], set()).add(outcome.result.split(" in ")[1])
    assert sorted(outcome.task for outcome in outcomes) == tasks
    assert [len(found) for found in processes.values()] == [1, 1, 1]
    assert len(set.union(*processes.values())) == 3
    order = [outcome.task for outcome in outcomes]
    assert order.index("a1") < order.index("a2") < order.index("a3")


def test_a_line_goes_on_in_a_new_process_after_one_died():
    died, fine = _outcomes(["die", "fine"], line_of=lambda _task: "line")
    assert died.failure == "its process died (exit code 7)"
    assert fine.failure is None


def test_a_process_that_died_while_idle_is_replaced():
    outcomes = run_tasks(ACT, ["a", "b"], workers=1, task_seconds=30.0, deadline=time.monotonic() + 60)
    first = next(outcomes)
    os.kill(int(first.result.split(" in ")[1]), signal.SIGKILL)
    time.sleep(0.2)
    (second,) = outcomes
    assert second.failure is None
    assert second.result.startswith("b in ")


def test_tasks_are_prepared_side_by_side_and_timed_alone():
    function = "tests.benchmarks.gpu.pool_tasks:prepare_and_time"
    outcomes = run_tasks(function, [3, 3, 3], workers=3, task_seconds=30.0, deadline=time.monotonic() + 60)
    results = [outcome.result for outcome in outcomes]
    prepared, timed = ([span for result in results for span in result[kind]] for kind in (0, 1))
    assert len(prepared) == len(timed) == 9
    assert all(before[1] <= after[0] for before, after in pairwise(sorted(timed)))
    assert not any(begun < end and start < ready for start, end in timed for begun, ready in prepared)
    # Whoever has taken times waits for the others that are ready to; so all prepare again at once.
    assert sum(before[1] > after[0] for before, after in pairwise(sorted(prepared))) >= 4


def test_outside_of_a_pool_nobody_has_to_wait():
    with alone(), alone():
        pass
