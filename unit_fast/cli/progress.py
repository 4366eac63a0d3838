"""A progress bar over batches, where somebody looks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from unit_fast.cli.terminal import Terminal


@contextmanager
def progress_bar(terminal: Terminal, description: str) -> Iterator[Callable[[int, int | None], None]]:
    """A callback for (done, total) that moves a bar on standard error, or nothing where nobody looks."""
    if not terminal.shows_progress:
        yield _ignore
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal.notes, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _ignore(done: int, total: int | None) -> None:
    pass
