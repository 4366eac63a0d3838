"""Timing in processes of their own: every case is timed, what fails is named, nothing is left running."""

import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from unit_fast.timing import Failure, Timing, burst, interleaved


def _sleeping(seconds: float) -> Mapping[str, Callable[[], object]]:
    return {"once": lambda: time.sleep(seconds), "twice": lambda: time.sleep(2 * seconds)}


def _broken() -> Mapping[str, Callable[[], object]]:
    raise ValueError("no such\nbackend")


def _dying() -> Mapping[str, Callable[[], object]]:
    calls = iter(range(3))
    return {"case": lambda: os._exit(3) if next(calls) else None}


def test_percentiles_are_those_of_the_sorted_calls() -> None:
    timing = Timing.of([float(value) for value in (9, 1, 2, 8, 3, 7, 4, 6, 5, 10)])
    assert (timing.median, timing.p20, timing.p80, timing.calls) == (6.0, 3.0, 9.0, 10)
    assert Timing.of([2.0], 7.0) == Timing(2.0, 2.0, 2.0, 1, 7.0)
    with pytest.raises(ValueError, match="at least one"):
        Timing.of([])


def test_a_burst_lasts_as_long_as_asked_and_times_every_call() -> None:
    now = iter([0.0, 0.25, 0.75, 1.25, 99.0])
    assert burst(lambda: None, 1.0, clock=lambda: next(now)) == [0.25, 0.5, 0.5]


def test_a_burst_has_at_least_one_call() -> None:
    now = iter([0.0, 5.0])
    assert burst(lambda: None, 0.0, clock=lambda: next(now)) == [5.0]


def test_contenders_are_timed_side_by_side_and_what_fails_is_named() -> None:
    said: list[tuple[int, int]] = []
    contenders = {
        "short": functools.partial(_sleeping, 0.002),
        "broken": _broken,
        "dying": _dying,
        "long": functools.partial(_sleeping, 0.02),
    }
    results = interleaved(contenders, rounds=2, seconds=0.05, progress=lambda done, total: said.append((done, total)))
    assert list(results) == list(contenders)
    assert results["broken"] == Failure("ValueError: no such backend")
    assert results["dying"] == Failure("its process ended with status 3")
    short, long = results["short"], results["long"]
    assert isinstance(short, dict)
    assert isinstance(long, dict)
    assert set(short) == set(long) == {"once", "twice"}
    assert short["once"].median >= 0.002
    assert long["twice"].median >= 0.04
    assert short["once"].calls >= 2
    assert 0 < short["once"].peak_mib <= short["twice"].peak_mib < 10_000
    assert said == [(done, 6) for done in range(1, 7)]
    assert not multiprocessing.active_children()


def _by_process(folder: Path) -> Mapping[str, Callable[[], object]]:
    """Sleeps longer in every process that builds it; a file in ``folder`` stands for each."""
    built = len(list(folder.iterdir()))
    (folder / str(built)).touch()
    return {"case": lambda: time.sleep(0.2 if built else 0.02)}


def _fails_when_built_again(folder: Path) -> Mapping[str, Callable[[], object]]:
    if len(list(folder.iterdir())):
        raise ValueError("only once")
    return _by_process(folder)


def test_restarts_build_everyone_anew_and_pool_the_calls_of_all_processes(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "one").mkdir()
    said: list[tuple[int, int]] = []
    contenders = {
        "by process": functools.partial(_by_process, tmp_path / "all"),
        "once": functools.partial(_fails_when_built_again, tmp_path / "one"),
    }
    results = interleaved(contenders, rounds=3, seconds=0.0, restarts=1, progress=lambda *step: said.append(step))
    assert len(list((tmp_path / "all").iterdir())) == 2
    timing = results["by process"]
    assert isinstance(timing, dict)
    assert timing["case"].calls == 6
    assert timing["case"].p20 < 0.2 <= timing["case"].p80
    assert results["once"] == Failure("ValueError: only once")
    assert said == [(done, 10) for done in range(1, 11)]
    assert not multiprocessing.active_children()


def _endless(file: Path) -> Mapping[str, Callable[[], object]]:
    file.write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def _time_endlessly(file: Path) -> None:
    interleaved({"endless": functools.partial(_endless, file)})


@pytest.mark.skipif(os.name == "nt", reason="os.kill(pid, 0) asks whether a process is there on POSIX only")
def test_a_killed_parent_takes_its_contenders_along(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    parent = multiprocessing.get_context("spawn").Process(target=_time_endlessly, args=(file,))
    parent.start()
    until = time.monotonic() + 60
    while not (file.exists() and file.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    contender = int(file.read_text())
    parent.kill()
    parent.join()
    until = time.monotonic() + 10
    while _lives(contender) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _lives(contender)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")
