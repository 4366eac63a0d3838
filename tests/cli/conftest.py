"""A working folder with a small model and samples, and the command line to run in it."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tests.cli.archives import Change, export_per_column, rewrite
from unit_fast.cli import app

FACTORY = """
import torch
from torch import nn

def net(classes=3):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, classes),
    )
"""


def _net() -> nn.Module:
    scope: dict[str, Callable[[], nn.Module]] = {}
    exec(FACTORY, scope)
    torch.manual_seed(3)
    return scope["net"]().eval()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt2, nets.py with weights.pth, and clean.npz, which the model gets right."""
    folder = tmp_path_factory.mktemp("prepared")
    net = _net()
    x = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = net(x)
        # Even the classes out, so that each has its samples.
        net[-1].bias -= scores.mean(0)
        y = net(x).argmax(1)
    assert torch.bincount(y, minlength=3).min() >= 10
    program = torch.export.export(net, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "model.pt2")
    torch.save(net.state_dict(), folder / "weights.pth")
    (folder / "nets.py").write_text(FACTORY)
    np.savez(folder / "clean.npz", x=x.numpy(), y=y.numpy())
    return folder


@pytest.fixture(scope="session")
def fitted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bounds file that a method of calibrate gives for model.pt2 on clean.npz, made once."""
    folder = tmp_path_factory.mktemp("fitted")

    @functools.cache
    def fit(method: str) -> Path:
        file = folder / f"{method}.safetensors"
        inputs = ("-m", str(prepared / "model.pt2"), "--data", str(prepared / "clean.npz"))
        result = CliRunner().invoke(app, ["calibrate", *inputs, "--method", method, "-o", str(file), "-q"])
        assert result.exit_code == 0, result.stderr
        return file

    return fit


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new working folder with links to what is prepared; the current folder while the test runs."""
    for file in prepared.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("nets", None)


@pytest.fixture
def unit_fast() -> Callable[..., Any]:
    """Run the command line in this process; the result has exit_code, stdout and stderr."""
    runner = CliRunner()

    def run(*arguments: object, env: dict[str, str] | None = None) -> Any:
        return runner.invoke(app, [str(argument) for argument in arguments], env=env)

    return run


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest model archive."""
    return export_per_column(tmp_path_factory.mktemp("archive") / "model.pt2")


@pytest.fixture
def tampered(archive: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make evil.pt2, an archive with members changed or added."""

    def tamper(
        change: Change = lambda name, content: (name, content), extra: Mapping[str, bytes] = MappingProxyType({})
    ) -> Path:
        return rewrite(archive, tmp_path / "evil.pt2", change, extra)

    return tamper
