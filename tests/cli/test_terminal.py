import json
import warnings

import pytest

from unit_fast.cli.terminal import Terminal
from unit_fast.errors import UnitFastWarning


@pytest.mark.parametrize("quiet", [False, True])
def test_json_replaces_what_is_for_people(capsys: pytest.CaptureFixture[str], quiet: bool) -> None:
    terminal = Terminal(json=True, quiet=quiet)

    terminal.note("working")
    terminal.show("a table")
    terminal.result({"rate": float("nan"), "shape": (1, 2), "path": object})

    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"rate": None, "shape": [1, 2], "path": "<class 'object'>"}
    assert captured.err == ("" if quiet else "working\n")


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True)

    terminal.note("working")
    terminal.show("a table")
    terminal.result({})

    assert capsys.readouterr() == ("", "")


def test_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().note("pixels in [0, 1] [bold]")

    assert capsys.readouterr().err == "pixels in [0, 1] [bold]\n"


@pytest.mark.parametrize("verbose", [False, True])
def test_our_warnings_are_notes_and_others_wait_for_verbose(capsys: pytest.CaptureFixture[str], verbose: bool) -> None:
    with Terminal(verbose=verbose).warnings_as_notes():
        warnings.warn("falling back", UnitFastWarning, stacklevel=1)
        warnings.warn("deprecated there", UserWarning, stacklevel=1)

    err = capsys.readouterr().err
    assert "warning: falling back" in err
    assert ("deprecated there" in err) == verbose
