"""What an archive is made of is looked through before anything in it is loaded."""

import contextlib
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cli.archives import RunsCode, in_member, in_program, pickled, touching, with_every_size
from unit_fast.cli.model_error import ModelError
from unit_fast.cli.pt2_archive import load_archive

Tamper = Callable[..., Path]


class Many(nn.Module):
    """Several inputs, buffers kept and not kept, lifted constants, and the operators whose arguments are text."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("shift", torch.rand(4, 1, 1))
        self.register_buffer("scale", torch.rand(1), persistent=False)
        self.layers = nn.ModuleDict({"last": nn.Linear(4, 2)})
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = F.gelu(self.norm(self.conv(x) + self.shift) * self.scale, approximate="tanh")
        x = x + torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)
        x = F.pad(x, (1, 1, 1, 1), mode="reflect").clamp(max=float("inf"))
        x = F.interpolate(F.interpolate(x, scale_factor=2.0, mode="bilinear"), size=(6, 6), mode="nearest")
        x = torch.div(torch.einsum("bchw, cd -> bdhw", x, torch.ones(4, 4)), 0.1, rounding_mode="floor")
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.softmax(self.attention(tokens, tokens, tokens)[0], -1)
        return self.layers["last"](tokens.mean(1)) + y, {"pooled": F.adaptive_avg_pool2d(x, 1), "largest": x.amax(1)}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that code in an archive would make."""
    return tmp_path / "ran"


def the_danger_is_real(marker: Path) -> None:
    assert marker.exists(), "torch itself no longer runs what this archive holds"
    marker.unlink()


def assert_refused(archive: Path, marker: Path, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_archive(archive)

    assert not marker.exists()


def test_computed_sizes_are_no_obstacle(archive: Path) -> None:
    program = load_archive(archive)

    assert program.module(check_guards=False)(torch.rand(3, 3, 8, 12)).shape == (3,)


@pytest.mark.parametrize("decomposed", [pytest.param(False, id="as-exported"), pytest.param(True, id="decomposed")])
def test_an_honest_archive_computes_as_before(tmp_path: Path, decomposed: bool) -> None:
    model = Many().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        model, (torch.rand(3, 3, 8, 8), torch.rand(3, 2)), dynamic_shapes=({0: batch}, {0: batch})
    )
    torch.export.save(program.run_decompositions() if decomposed else program, tmp_path / "model.pt2")
    inputs = torch.rand(5, 3, 8, 8), torch.rand(5, 2)

    loaded = load_archive(tmp_path / "model.pt2")

    torch.testing.assert_close(loaded.module()(*inputs), model(*inputs))
    assert [tensor.shape for tensor in loaded.example_inputs[0]] == [(3, 3, 8, 8), (3, 2)]


def test_a_pickle_in_the_place_of_example_inputs_is_not_run(
    tampered: Tamper, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = tampered(in_member("sample_inputs", lambda _: pickled(marker)))
    # torch says that it runs it in a log message that cannot be formatted.
    monkeypatch.setattr("torch._export.serde.serialize.log.warning", lambda *_, **__: None)
    torch.export.load(evil)
    the_danger_is_real(marker)

    assert_refused(evil, marker, r"evil\.pt2")


def test_a_pickled_weight_is_not_run(tampered: Tamper, marker: Path) -> None:
    def change(name: str, content: bytes) -> tuple[str, bytes]:
        if name.endswith("weights_config.json"):
            config = json.loads(content)
            for entry in config["config"].values():
                entry["use_pickle"] = True
            return name, json.dumps(config).encode()
        return name, pickled(marker) if "/weights/" in name else content

    assert_refused(tampered(change), marker, r"evil\.pt2")


@pytest.mark.parametrize(
    "member",
    [
        pytest.param("data/aotinductor/model/model.so", id="compiled-library"),
        pytest.param("data/constants/custom_obj_0", id="script-object"),
        pytest.param("data/constants/opaque_obj_0", id="opaque-object"),
        pytest.param("data/constants/model.pt", id="pickled-constants"),
        pytest.param("data/weights/model.pt", id="pickled-weights"),
        pytest.param("models/other.json", id="second-model"),
        pytest.param("models/MODEL.JSON", id="same-model-in-another-case"),
        pytest.param("Data/weights/weight_0", id="folder-in-another-case"),
        pytest.param("models/model.json", id="same-entry-twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_unexpected_members_are_refused(tampered: Tamper, member: str) -> None:
    evil = tampered(extra={member: b""})

    with pytest.raises(ModelError, match=rf"holds '\w+/{re.escape(member)}'.*export the model again yourself, or"):
        load_archive(evil)


def test_files_of_the_exporters_own_are_no_obstacle(tampered: Tamper) -> None:
    load_archive(tampered(extra={"extra/notes.txt": b"hello"}))


def test_guards_are_not_evaluated(tampered: Tamper, marker: Path) -> None:
    def guard(program: dict) -> None:
        program["guards_code"] = [f"{touching(marker)} is None"]

    evil = tampered(in_program(guard))
    # torch evaluates it when the module is made and called.
    torch.export.load(evil).module()(torch.rand(2, 3, 8, 8))
    the_danger_is_real(marker)

    load_archive(evil).module()(torch.rand(2, 3, 8, 8))

    assert not marker.exists()


@pytest.mark.parametrize("ending", ["json", "jsox", "JSON"])
def test_code_in_the_place_of_sizes_is_not_run_whatever_the_name_of_the_model(
    tampered: Tamper, marker: Path, ending: str
) -> None:
    def change(name: str, content: bytes) -> tuple[str, bytes]:
        if not name.endswith("models/model.json"):
            return name, content
        return f"{name.removesuffix('json')}{ending}", with_every_size(content, f"{touching(marker)} or Symbol('s77')")

    evil = tampered(change)
    with contextlib.suppress(Exception):
        torch.export.load(evil)
    the_danger_is_real(marker)

    assert_refused(evil, marker, r"holds (code where a size should be|'.*model\.(jsox|JSON)')")


@pytest.mark.parametrize("entry", ["opaque_obj_0", "Opaque_Obj_0"])
def test_opaque_objects_are_not_unpickled(tampered: Tamper, marker: Path, entry: str) -> None:
    config = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    listed = json.dumps({"config": {"evil": config}}).encode()
    evil = tampered(
        in_member("model_constants_config.json", lambda _: listed),
        extra={f"data/constants/{entry}": pickle.dumps(RunsCode(marker))},
    )
    with contextlib.suppress(Exception):
        torch.export.load(evil)
    if not torch.__version__.startswith("2.11."):  # which knows no such objects yet
        the_danger_is_real(marker)

    assert_refused(evil, marker, rf"holds '.*/{entry}'")


def test_a_list_of_constants_that_names_an_opaque_object_is_refused(tampered: Tamper) -> None:
    config = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": {"dtype": 7}}
    listed = json.dumps({"config": {"evil": config}}).encode()

    with pytest.raises(ModelError, match="'opaque_obj_0', which is no plain tensor"):
        load_archive(tampered(in_member("model_constants_config.json", lambda _: listed)))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_truncated_archive(archive: Path, tmp_path: Path, share: float) -> None:
    whole = archive.read_bytes()
    (tmp_path / "half.pt2").write_bytes(whole[: int(share * len(whole))])

    with pytest.raises(ModelError, match=r"half\.pt2 is damaged"):
        load_archive(tmp_path / "half.pt2")
