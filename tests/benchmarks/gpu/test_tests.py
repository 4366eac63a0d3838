"""The tests on a GPU are run as a part: what failed is told with its reason, also when time runs out."""

import json
import time

import pytest

from benchmarks.gpu import tests as part
from benchmarks.gpu.session import Session


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path, True, time.monotonic() + 120, 1, "cpu", "cpu")


def written(session):
    return json.loads((session.folder / "gpu_dry_run_tests.json").read_text())["figures"]


def some_tests(folder, monkeypatch, text):
    path = folder / "test_some.py"
    path.write_text(text)
    monkeypatch.setattr(part, "DRY", (str(path),))


def test_failures_are_told_with_their_reasons(session, tmp_path, monkeypatch):
    source = "import pytest\n\ndef test_right(): pass\n\ndef test_wrong(): assert 1 == 2\n"
    some_tests(tmp_path, monkeypatch, source + "\ndef test_left_out(): pytest.skip('no')\n")
    told = part.measure(session)
    assert sorted(told[0].split(", ")) == ["1 failed", "1 passed", "1 skipped"]
    figures = written(session)
    assert figures["complete"]
    assert figures["outcomes"] == {"passed": 1, "failed": 1, "skipped": 1}
    (failed,) = figures["failed"]
    assert failed["test"].endswith("test_wrong")
    assert "assert 1 == 2" in failed["why"]
    assert any("test_wrong" in line for line in told)


def test_what_is_done_when_time_runs_out_is_kept(session, tmp_path, monkeypatch):
    some_tests(tmp_path, monkeypatch, "import time\n\ndef test_1(): pass\n\ndef test_2(): time.sleep(300)\n")
    session.deadline = time.monotonic() + 25
    part.measure(session)
    figures = written(session)
    assert not figures["complete"]
    assert figures["outcomes"] == {"passed": 1}


def test_that_nothing_ran_is_no_success(session, tmp_path, monkeypatch):
    some_tests(tmp_path, monkeypatch, "import no_such_module\n")
    with pytest.raises(RuntimeError, match="no test ran"):
        part.measure(session)
