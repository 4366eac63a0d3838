"""The table of choices is made of what the fused networks ask for, and can be read back."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from benchmarks.gpu.dispatch import Network, Task, problems, timed, verify
from unit_fast.kernels.dispatch.environment import environment_of
from unit_fast.kernels.dispatch.store import Store, read_table, write_table


@pytest.fixture(scope="module")
def found():
    return problems(Network("tiny", (2, 5), dry_run=True))


@pytest.fixture(scope="module")
def tasks(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return [Task(problem, True, folder) for problem in found[0]]


def test_problems_are_told_by_batch_size(found):
    assert [{problem.x.shape[0] for problem in problems} for problems in found] == [{2}, {5}]
    assert len(found[0]) == len(found[1])


def test_each_distinct_operator_of_the_network_is_a_problem(tasks):
    assert [task.problem.operator for task in tasks] == ["conv2d"] * 6
    assert sum("bound=" in task.problem.key for task in tasks) == 5, "the sixth has no clamp behind it"
    assert sum("residual=" in task.problem.key for task in tasks) == 2
    assert all("/channels_last" in task.problem.key for task in tasks)
    assert len({task.problem.key for task in tasks}) == 6


def test_candidates_are_verified_timed_and_written_into_a_table(tasks, tmp_path):
    task = tasks[0]
    assert verify(task) == {}
    row = timed(task)
    assert row["candidate"] in row["microseconds"] or row["microseconds"] == {}  # without Triton there is no choice
    environment = environment_of(torch.device("cpu"))
    records = Store(environment, task.folder).records()
    assert bool(records) == bool(row["microseconds"])
    write_table(tmp_path / "cpu.json", environment, records)
    assert read_table(tmp_path / "cpu.json") == records
