"""Part "tests": the tests that a GPU runs otherwise than the CPU, on the GPU; what fails, and why.

Failures are written as they come, so that a run that is cut off still tells them. Tests run side by side, while nothing
is timed. A dry run takes one short file.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.session import Session

ROOT = Path(__file__).parents[2]
WHAT = ("tests/runtime/test_on_gpu.py", "tests/kernels")
DRY = ("tests/kernels/test_configs.py",)
REPORTS = "UNIT_FAST_TEST_REPORTS"
"""Environment variable: the file that this module, as a plugin of pytest, writes a line a test to."""
MOST_WORDS = 1500
TEST_SECONDS = 120


def measure(session: Session) -> list[str]:
    """Run the tests until they are done or the time is, and write what came of them.

    Raises:
        RuntimeError: no test ran.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        reports = Path(folder) / "reports.jsonl"
        complete, said = _run(session, reports)
        results = _read(reports)
    outcomes = Counter(result["outcome"] for result in results)
    failed = [result for result in results if result["outcome"] == "failed"]
    figures: dict[str, Any] = {"complete": complete, "outcomes": dict(outcomes), "failed": failed}
    session.write("tests", figures | {"seconds": time.monotonic() - started})
    if not results:
        raise RuntimeError(f"no test ran: {said[-500:]}")
    told = [f"{result['test']}: {result['why'].strip().splitlines()[-1][:200]}" for result in failed if result["why"]]
    return [", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()), *told[:40]]


def _read(reports: Path) -> list[dict[str, Any]]:
    """What was written of the tests; a line that a kill cut off is left out."""
    results = []
    for line in reports.read_text().splitlines() if reports.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            results.append(json.loads(line))
    return results


def _run(session: Session, reports: Path) -> tuple[bool, str]:
    """Whether pytest came to its end, and what it said."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", __name__]
    command += ["-n", str(session.workers), "--timeout", str(TEST_SECONDS), *(DRY if session.dry_run else WHAT)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(ROOT), REPORTS: str(reports)}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(timeout=session.remaining)
            complete = process.returncode in (0, 1)  # of pytest: all passed, some failed
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its workers, which hold the GPU
            process.wait()
            complete = False
        output.seek(0)
        return complete, output.read()


def pytest_configure(config: pytest.Config) -> None:
    """As a plugin of pytest: report from the process that gathers the results, and not from its workers."""
    path = os.environ.get(REPORTS)
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Reporter(Path(path)))


class _Reporter:
    """Writes a line for each test when it is done."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each phase of a test."""
        if report.when == "call" or report.outcome != "passed":  # a set-up that fails or skips has no call
            line = {"test": report.nodeid, "outcome": report.outcome, "why": report.longreprtext[-MOST_WORDS:]}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
