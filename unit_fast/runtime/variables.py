"""Environment variables that others change."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keeping(name: str) -> Iterator[None]:
    """Set the variable back to what it was, or to nothing, at the end."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
