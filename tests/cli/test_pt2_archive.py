import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from unit_fast.cli.model_error import ModelError
from unit_fast.cli.pt2_archive import load_archive


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


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "model.pt2"
    dims = {0: torch.export.Dim("batch"), 3: torch.export.Dim("width", min=4, max=64)}
    torch.export.save(torch.export.export(PerColumn().eval(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=(dims,)), path)
    return path


def rewritten(archive: Path, to: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as target:
        folder = source.namelist()[0].partition("/")[0]
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
        for name, content in extra.items():
            target.writestr(f"{folder}/{name}", content)
    return to


def pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(((RunsCode(marker),), {}), buffer)
    return buffer.getvalue()


def test_computed_sizes_are_no_obstacle(archive: Path) -> None:
    program = load_archive(archive)

    assert program.module(check_guards=False)(torch.rand(3, 3, 8, 12)).shape == (3,)


def test_a_pickle_in_the_place_of_example_inputs_is_not_run(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    evil = rewritten(
        archive,
        tmp_path / "evil.pt2",
        lambda name, content: pickled(marker) if "sample_inputs" in name else content,
        {},
    )
    # The danger is real: torch itself runs it (and says so in a log message that cannot be formatted).
    monkeypatch.setattr("torch._export.serde.serialize.log.warning", lambda *_, **__: None)
    torch.export.load(evil)
    assert marker.exists()
    marker.unlink()

    with pytest.raises(ModelError, match=r"evil\.pt2"):
        load_archive(evil)

    assert not marker.exists()


def test_a_pickled_weight_is_not_run(archive: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            config = json.loads(content)
            for entry in config["config"].values():
                entry["use_pickle"] = True
            return json.dumps(config).encode()
        return pickled(marker) if "/weights/" in name else content

    evil = rewritten(archive, tmp_path / "evil.pt2", change, {})

    with pytest.raises(ModelError, match=r"evil\.pt2"):
        load_archive(evil)

    assert not marker.exists()


@pytest.mark.parametrize(
    ("member", "says"),
    [
        pytest.param("data/aotinductor/model/model.so", "native code", id="compiled-library"),
        pytest.param("data/constants/custom_obj_0", "pickled object", id="script-object"),
        pytest.param("data/constants/opaque_obj_0", "pickled object", id="opaque-object"),
    ],
)
def test_members_that_run_are_refused(archive: Path, tmp_path: Path, member: str, says: str) -> None:
    evil = rewritten(archive, tmp_path / "evil.pt2", lambda name, content: content, {member: b""})  # noqa: ARG005

    with pytest.raises(ModelError, match=says):
        load_archive(evil)


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("eval('1')", id="eval"),
        pytest.param("__import__('os').getpid()", id="import"),
        pytest.param("S('1')", id="sympify-again"),
        pytest.param("Max('x', 1)", id="text-that-sympy-parses"),
        pytest.param("Symbol('a.b')", id="symbol-that-is-no-name"),
        pytest.param("(lambda: 1)()", id="lambda"),
        pytest.param("x.y", id="attribute"),
    ],
)
def test_expressions_that_are_no_sizes_are_refused(archive: Path, tmp_path: Path, expression: str) -> None:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        graph = json.loads(content)
        graph["added"] = {"as_expr": {"expr_str": expression}}
        return json.dumps(graph).encode()

    evil = rewritten(archive, tmp_path / "evil.pt2", change, {})

    with pytest.raises(ModelError, match="code where a size should be"):
        load_archive(evil)


@pytest.mark.parametrize(
    "target",
    ["torch.load", "torch.ops.load_library", "torch.ops.aten.__class__.mro", "_operator.methodcaller", "#ext:x"],
)
def test_calls_that_are_no_operators_are_refused(archive: Path, tmp_path: Path, target: str) -> None:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        graph = json.loads(content)
        graph["graph_module"]["graph"]["nodes"][0]["target"] = target
        return json.dumps(graph).encode()

    evil = rewritten(archive, tmp_path / "evil.pt2", change, {})

    with pytest.raises(ModelError, match=r"expected operators of torch\.ops only"):
        load_archive(evil)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_truncated_archive(archive: Path, tmp_path: Path, share: float) -> None:
    whole = archive.read_bytes()
    (tmp_path / "half.pt2").write_bytes(whole[: int(share * len(whole))])

    with pytest.raises(ModelError, match=r"half\.pt2 is damaged"):
        load_archive(tmp_path / "half.pt2")
