import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unit_fast.cli.app import EXIT_INTERNAL

SCRIPT = Path(sys.executable).with_name("unit-fast")


@pytest.mark.parametrize("command", ["demo", "calibrate", "evaluate", "export", "env"])
def test_every_command_has_help(unit_fast, command: str) -> None:
    result = unit_fast(command, "--help")

    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_version(unit_fast) -> None:
    result = unit_fast("--version")

    assert result.exit_code == 0
    assert result.stdout.split()[0] == "unit_fast"


def test_python_runs_the_package() -> None:
    command = [sys.executable, "-m", "unit_fast", "--version"]

    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("unit_fast")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["calibrat"], "No such command 'calibrat'. Did you mean 'calibrate'?", id="command"),
        pytest.param(["env", "--colour"], "No such option: --colour", id="option"),
        pytest.param(["calibrate", "--data", "x"], "Missing option '--model'", id="missing"),
        pytest.param(["demo", "--seed", "x"], "Invalid value for '--seed'", id="value"),
    ],
)
def test_usage_errors_are_one_line_and_2(unit_fast, arguments: list[str], says: str) -> None:
    result = unit_fast(*arguments)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"unit-fast: error: {says}")
    assert "--help)" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["calibrate", "-o"], "--output clean.npz is what --data names", id="calibrate"),
        pytest.param(["calibrate", "--plot"], "--plot clean.npz is what --data names", id="calibrate-plot"),
        pytest.param(["evaluate", "--html"], "--html clean.npz is what --data names", id="evaluate"),
        pytest.param(["bench", "-o"], "--output clean.npz is what --data names", id="bench"),
    ],
)
def test_what_a_command_reads_is_never_written_over(here: Path, unit_fast, arguments: list[str], says: str) -> None:
    result = unit_fast(*arguments, "clean.npz", "--model", "model.pt2", "--data", here / "clean.npz")

    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"unit-fast: error: {says} and would be replaced; name another file"]


def test_our_own_defects_are_called_so(unit_fast, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("lost")

    monkeypatch.setattr("unit_fast.cli.env._platform", fail)

    result = unit_fast("env")

    assert result.exit_code == EXIT_INTERNAL
    assert result.stderr == (
        "unit-fast: error: internal error: KeyError: 'lost'; --verbose shows where, please report it\n"
    )


def test_help_and_completion_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from unit_fast.cli import main; sys.argv = ['unit-fast', '--help']\n"
        "try: main()\n"
        "except SystemExit: print('torch' in sys.modules)"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout.splitlines()[-1] == "False"


def test_completion_is_offered() -> None:
    environment = {
        **os.environ,
        "_UNIT_FAST_COMPLETE": "complete_bash",
        "COMP_WORDS": "unit-fast ex",
        "COMP_CWORD": "1",
    }

    result = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=60)

    assert result.stdout.split() == ["export"]


def test_json_is_alone_on_standard_output() -> None:
    result = subprocess.run([SCRIPT, "env", "--json"], capture_output=True, text=True, timeout=60, check=True)

    assert json.loads(result.stdout)["packages"]["unit_fast"]


def test_a_reader_that_goes_away_is_no_error_of_ours() -> None:
    command = f"{SCRIPT} env | head -n 1"

    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)

    assert result.stderr == ""


def test_ctrl_c_ends_with_130_and_leaves_nothing(here: Path) -> None:
    process = subprocess.Popen(
        [SCRIPT, "demo", "-o", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=here,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stderr is not None
    assert "train" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert list((here / "out").iterdir()) == []
