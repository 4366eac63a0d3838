"""Where a command writes: results to standard output, everything else to standard error."""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.markup import escape

from unit_fast.errors import UnitFastWarning


class Terminal:
    """What the user sees.

    Args:
        json: standard output gets one JSON object, the result, and nothing else.
        quiet: no notes, no progress, no tables; errors and JSON stay.
        verbose: also the warnings of the libraries underneath.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self.notes = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._results = Console(quiet=quiet or json, highlight=False)

    @property
    def shows_progress(self) -> bool:
        """Whether a moving bar has somebody to look at it."""
        return self.notes.is_terminal and not self.quiet

    def note(self, text: str) -> None:
        """Say something that is not the result. Square brackets are text, not markup."""
        self.notes.print(escape(text))

    def warn(self, text: str) -> None:
        """Say something the user should look at."""
        self.notes.print(f"[yellow]warning:[/] {escape(' '.join(text.split()))}")

    def show(self, *renderables: RenderableType) -> None:
        """Print (a part of) the result for people; silent with ``json`` and ``quiet``."""
        for renderable in renderables:
            # Text is left as long as it is, so that commands in it can be copied; tables fit the terminal.
            self._results.print(renderable, soft_wrap=isinstance(renderable, str))

    def result(self, values: Mapping[str, Any]) -> None:
        """Print the result for programs, where they asked for it. Called once a command, last."""
        if self.json:
            print(json.dumps(_plain(values), indent=2, allow_nan=False))

    @contextmanager
    def warnings_as_notes(self) -> Iterator[None]:
        """Turn our warnings into one line each; drop those of other libraries unless ``verbose``."""
        with warnings.catch_warnings():
            warnings.simplefilter("default" if self.verbose else "ignore")
            warnings.simplefilter("always", UnitFastWarning)
            warnings.showwarning = self._show_warning
            yield

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG002 - the warnings module calls it with these
        line: str | None = None,  # noqa: ARG002
    ) -> None:
        where = "" if issubclass(category, UnitFastWarning) else f" ({filename}:{lineno})"
        self.warn(f"{message}{where}")


def _plain(value: Any) -> Any:
    # JSON has no NaN and no infinity; programs read null where there is no number.
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
