"""The commands put together, and what becomes of an error: one line on standard error and an exit status."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unit_fast.errors import UnitFastError

EXIT_ERROR = 2
EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h: a defect of unit_fast, not of what it was given
EXIT_INTERRUPTED = 130

# click's exception for anything wrong with the command line; typer keeps it under no public name of its own.
_UsageError = typer.BadParameter.__base__
assert _UsageError is not None


class _OneLineErrors(TyperGroup):
    """Says what went wrong in one line: 2 for what the user can mend, 130 for Ctrl-C, 70 for our own defects."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        run = partial(
            super().main, arguments, prog_name, complete_var, False, windows_expand_args=windows_expand_args, **extra
        )
        if not standalone_mode:
            return run()
        sys.exit(self._status(run, verbose="--verbose" in arguments))

    def _status(self, run: Callable[[], Any], verbose: bool) -> int:
        try:
            # Exits (130 after Ctrl-C, 0 after --help) come back as the value; commands return nothing.
            return int(run() or 0)
        except UnitFastError as error:
            return _report(str(error), EXIT_ERROR, verbose)
        except (_UsageError, typer.Abort) as error:  # type: ignore[misc]  # known to be an exception, not to mypy
            message = getattr(error, "format_message", lambda: "aborted")()
            return _report(f"{message} ({_help_hint(error)})", EXIT_ERROR, verbose)
        except BrokenPipeError:
            # The reader (head, less) has gone: Python would complain again when it flushes standard output at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return _report(f"{where}{error.strerror or error}", EXIT_ERROR, verbose)
        except MemoryError:
            return _report("out of memory; choose a smaller --batch-size", EXIT_ERROR, verbose)
        except Exception as error:  # noqa: BLE001 - the last stop: whatever is left is a defect and is called one
            hint = "" if verbose else "; --verbose shows where, please report it"
            return _report(f"internal error: {type(error).__name__}: {error}{hint}", EXIT_INTERNAL, verbose)


def _report(message: str, status: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    print("unit-fast: error:", " ".join(message.split()), file=sys.stderr)
    return status


def _help_hint(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return f"see {context.command_path if context else 'unit-fast'} --help"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"unit_fast {version('unit_fast')}")
        raise typer.Exit


app = typer.Typer(
    name="unit-fast",
    cls=_OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Remove backdoors from a trained network by bounding its activations, measure it, and ship it.",
    epilog="Start with: unit-fast demo",
)


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def _add_commands() -> None:
    from unit_fast.cli.bench import bench
    from unit_fast.cli.calibrate import calibrate
    from unit_fast.cli.demo import demo
    from unit_fast.cli.env import env
    from unit_fast.cli.evaluate import evaluate
    from unit_fast.cli.export import export

    for command in (demo, calibrate, evaluate, export, bench, env):
        app.command()(command)


_add_commands()


def main() -> None:
    """Run the command line and exit with its status."""
    app(prog_name="unit-fast")
