"""Model archives, and what an attacker makes of them."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn


class RunsCode:
    """Pickles into a call: unpickling it freely would make the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


class PerColumn(nn.Module):
    """Computes with sizes, so that its archive holds expressions and arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x))
        return y.reshape(y.shape[0], -1).sum(1) / (2 * y.shape[3] + 1)


def export_per_column(path: Path) -> Path:
    """An archive of :class:`PerColumn` with two sizes left open."""
    dims = {0: torch.export.Dim("batch"), 3: torch.export.Dim("width", min=4, max=64)}
    torch.export.save(torch.export.export(PerColumn().eval(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=(dims,)), path)
    return path


Change = Callable[[str, bytes], tuple[str, bytes]]
"""From a member's name and content to those in its place."""


def rewrite(archive: Path, to: Path, change: Change, extra: Mapping[str, bytes]) -> Path:
    """A copy of an archive with members changed, and others added below its folder."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as target:
        folder = source.namelist()[0].partition("/")[0]
        for name in source.namelist():
            target.writestr(*change(name, source.read(name)))
        for name, content in extra.items():
            target.writestr(f"{folder}/{name}", content)
    return to


def in_program(change: Callable[[dict], None]) -> Change:
    """Change the exported program, which is JSON."""
    return in_member("models/model.json", lambda content: _changed(content, change))


def _changed(content: bytes, change: Callable[[dict], None]) -> bytes:
    program = json.loads(content)
    change(program)
    return json.dumps(program).encode()


def in_member(name: str, change: Callable[[bytes], bytes]) -> Change:
    """Change the members whose name holds this."""
    return lambda member, content: (member, change(content) if name in member else content)


def with_every_size(content: bytes, code: str) -> bytes:
    return json.dumps(
        json.loads(content, object_hook=lambda item: item | {"expr_str": code} if "expr_str" in item else item)
    ).encode()


def touching(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def call(operator: str, result: str, **arguments: dict) -> dict:
    return {
        "target": f"torch.ops.{operator}",
        "inputs": [{"name": name, "arg": argument, "kind": 1} for name, argument in arguments.items()],
        "outputs": [{"as_tensor": {"name": result}}],
        "metadata": {},
        "is_hop_single_tensor_return": None,
    }


def pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(((RunsCode(marker),), {}), buffer)
    return buffer.getvalue()
