"""The command line: ``unit-fast demo | calibrate | evaluate | export | env``."""

from unit_fast.cli.app import app, main

__all__ = ["app", "main"]
