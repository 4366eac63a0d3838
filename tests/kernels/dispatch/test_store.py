"""The files of measurements: damaged, stale, foreign, written by several at once, or not writable at all."""

import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from tests.kernels.dispatch.ways import A100, H200
from unit_fast.kernels.dispatch import store as module
from unit_fast.kernels.dispatch.store import DispatchWarning, Record, Store, cache_folder, read_table, write_table

RECORD = Record("triton a", {"triton a": 1.5, "reference": 3.0}, {"triton b": "it differs"})


def test_a_record_comes_back(tmp_path):
    Store(H200, tmp_path).put("key", RECORD)
    assert Store(H200, tmp_path).get("key") == RECORD
    assert Store(H200, tmp_path).get("other") is None


def test_the_file_is_named_after_the_gpu_and_can_be_read_by_people(tmp_path):
    Store(H200, tmp_path).put("key", RECORD)
    (file,) = tmp_path.glob("*.json")
    assert file.name.startswith("dispatch-nvidia-h200-")
    content = json.loads(file.read_text())
    assert content["environment"] == H200.identity
    assert content["choices"]["key"]["microseconds"] == {"triton a": 1.5, "reference": 3.0}


def test_each_environment_has_its_own(tmp_path):
    Store(H200, tmp_path).put("key", RECORD)
    assert Store(A100, tmp_path).get("key") is None


def damaged(text: str):
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damaged(""), id="empty"),
        pytest.param(damaged('{"format": 1, "choi'), id="cut off"),
        pytest.param(damaged("[]"), id="another shape"),
        pytest.param(damaged('{"format": 99, "environment": {}, "choices": {}}'), id="another format"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe\x00"), id="no text"),
        pytest.param(
            lambda path: path.write_text(path.read_text().replace("580.1", "570.0")), id="another driver inside"
        ),
    ],
)
def test_a_damaged_file_costs_a_measurement_and_one_warning(tmp_path, damage):
    Store(H200, tmp_path).put("key", RECORD)
    (file,) = tmp_path.glob("*.json")
    damage(file)
    store = Store(H200, tmp_path)
    with pytest.warns(DispatchWarning, match="made again"):
        assert store.get("key") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.put("key", RECORD)
        assert Store(H200, tmp_path).get("key") == RECORD


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        {},
        {"candidate": 3},
        {"candidate": "a", "microseconds": {"a": "fast"}},
        {"candidate": "a", "dropped": 1},
    ],
)
def test_one_odd_entry_does_not_cost_the_others(tmp_path, entry):
    Store(H200, tmp_path).put("key", RECORD)
    (file,) = tmp_path.glob("*.json")
    content = json.loads(file.read_text())
    content["choices"]["odd"] = entry
    file.write_text(json.dumps(content))
    store = Store(H200, tmp_path)
    assert store.get("odd") is None
    assert store.get("key") == RECORD


def test_two_writers_keep_each_others_records(tmp_path):
    first, second = Store(H200, tmp_path), Store(H200, tmp_path)
    assert first.get("a") is None
    assert second.get("a") is None
    first.put("a", RECORD)
    second.put("b", RECORD)
    fresh = Store(H200, tmp_path)
    assert fresh.get("a") == fresh.get("b") == RECORD


WRITER = """
import sys
from pathlib import Path
from tests.kernels.dispatch.ways import H200
from unit_fast.kernels.dispatch.store import Record, Store
store = Store(H200, Path(sys.argv[1]))
for number in range(15):
    store.put(f"{sys.argv[2]} {number}", Record("triton a"))
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], cwd=Path(__file__).parents[3])
        for name in ("p", "q")
    ]
    assert all(writer.wait() == 0 for writer in writers)
    store = Store(H200, tmp_path)
    assert all(store.get(f"{name} {number}") for name in ("p", "q") for number in range(15))
    assert not list(tmp_path.glob("*.tmp"))


def test_threads_that_write_at_once_lose_nothing(tmp_path):
    store = Store(H200, tmp_path)
    threads = [threading.Thread(target=store.put, args=(str(number), RECORD)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(Store(H200, tmp_path).get(str(number)) for number in range(16))


def test_a_lock_that_is_never_let_go_is_not_waited_for(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="this system has no such locks")
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0.05)
    store = Store(H200, tmp_path)
    with store.path.with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        store.put("key", RECORD)
    assert Store(H200, tmp_path).get("key") == RECORD


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_said_once(tmp_path):
    tmp_path.chmod(0o500)
    try:
        _expect_one_warning(Store(H200, tmp_path))
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path):
    (tmp_path / "file").write_text("")
    _expect_one_warning(Store(H200, tmp_path / "file" / "cache"))


def _expect_one_warning(store: Store) -> None:
    with pytest.warns(DispatchWarning, match="cannot be kept.*UNIT_FAST_CACHE"):
        store.put("a", RECORD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.put("b", RECORD)
    assert store.get("a") == RECORD, "this process goes on with what it has measured"


def test_a_table_comes_back_for_any_versions(tmp_path):
    write_table(tmp_path / "nvidia-h200.json", H200, {"key": RECORD})
    assert read_table(tmp_path / "nvidia-h200.json") == {"key": RECORD}
    assert Store(H200, tmp_path / "cache", tmp_path).shipped("key") == RECORD
    assert Store(A100, tmp_path / "cache", tmp_path).shipped("key") is None


def test_the_tables_that_ship_can_be_read():
    for path in module.TABLES.glob("*.json"):
        assert read_table(path), path


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("UNIT_FAST_CACHE", raising=False)
    assert cache_folder() == tmp_path / "unit_fast"
    monkeypatch.setenv("UNIT_FAST_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("UNIT_FAST_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/unit_fast").expanduser()
