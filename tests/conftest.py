"""What every test gains from."""

import functools
import gc
import hashlib
import importlib
import logging
import os
import random
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

# Triton decides between compiling and interpreting when a kernel is decorated: this precedes every import of one.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# torch writes down what it traces, in full, for whoever listens; pytest listens to loggers that keep to themselves.
logging.getLogger("torch.__trace").propagate = True


def pytest_sessionstart() -> None:
    """Spare torch.export what it works out again in every capture, and there are thousands of them."""
    _materialise_operators_once()
    # It subscripts Callable for each of ten thousand entries that it makes and takes back; typing's remembers them.
    if hasattr(torch._ops, "Callable"):
        torch._ops.Callable = typing.Callable  # type: ignore[attr-defined]


def pytest_collection_finish() -> None:
    """Leave what has been imported out of garbage collection: torch traces with so many objects that it runs often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before a module is imported: the same random weights of layers that its parameters hold."""
    if isinstance(collector, pytest.Module):
        _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before the fixtures of every test: the same random numbers, whatever ran before in this process."""
    _seed()
    _read_onnxscript_once()


@pytest.fixture(scope="session", autouse=True)
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where measurements are kept: not in the user's own folder. Folders are made by who first writes to them."""
    folder = tmp_path_factory.getbasetemp() / "remembered"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIT_FAST_CACHE", str(folder / "fixtures"))
        yield folder


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch, remembered: Path, request: pytest.FixtureRequest) -> None:
    """No test finds what another has measured."""
    own = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    monkeypatch.setenv("UNIT_FAST_CACHE", str(remembered / own))


def _materialise_operators_once() -> None:
    """Let torch.export ask for the operators of torch once: it asks 27 times a capture, for those that tests add.

    Those are called, and so found, anyway. Where torch keeps the question elsewhere, captures are as slow as ever.
    """
    utils = importlib.import_module("torch._export.utils")
    question = "_materialize_cpp_cia_ops"
    if hasattr(utils, question):
        setattr(utils, question, functools.cache(getattr(utils, question)))


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _read_onnxscript_once() -> None:
    """Let torch.onnx read onnxscript's library once: parsed anew, it is a third of what a small export takes.

    Where torch keeps it elsewhere, exports are as slow as ever and nothing else changes.
    """
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    scripts = getattr(exporter, "onnxscript_apis", None)
    if scripts is not None and "get_torchlib_ops" not in vars(scripts):
        scripts.get_torchlib_ops = functools.cache(scripts.get_torchlib_ops)
