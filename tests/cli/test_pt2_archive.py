import contextlib
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
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


def on_graph(change: Callable[[dict], None]) -> Callable[[str, bytes], bytes]:
    def changed(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        change(program)
        return json.dumps(program).encode()

    return changed


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
def test_unexpected_members_are_refused(archive: Path, tmp_path: Path, member: str) -> None:
    evil = rewritten(archive, tmp_path / "evil.pt2", lambda name, content: content, {member: b""})  # noqa: ARG005

    with pytest.raises(ModelError, match=rf"holds '\w+/{re.escape(member)}'.*export the model again yourself, or"):
        load_archive(evil)


def test_files_of_the_exporters_own_are_no_obstacle(archive: Path, tmp_path: Path) -> None:
    extra = {"extra/notes.txt": b"hello"}

    load_archive(rewritten(archive, tmp_path / "extra.pt2", lambda name, content: content, extra))  # noqa: ARG005


def test_guards_are_not_evaluated(archive: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    def guard(program: dict) -> None:
        program["guards_code"] = [f"{touching(marker)} is None"]

    evil = rewritten(archive, tmp_path / "evil.pt2", on_graph(guard), {})
    # The danger is real: torch evaluates it when the module is made and called.
    torch.export.load(evil).module()(torch.rand(2, 3, 8, 8))
    assert marker.exists()
    marker.unlink()

    load_archive(evil).module()(torch.rand(2, 3, 8, 8))

    assert not marker.exists()


@pytest.mark.parametrize("ending", ["json", "jsox", "JSON"])
def test_code_in_the_place_of_sizes_is_not_run_whatever_the_name_of_the_model(
    archive: Path, tmp_path: Path, ending: str
) -> None:
    marker = tmp_path / "ran"
    evil = tmp_path / "evil.pt2"
    code = f"{touching(marker)} or Symbol('s77')"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(evil, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            is_model = name.endswith("models/model.json")
            content = with_every_size(source.read(name), code) if is_model else source.read(name)
            target.writestr(f"{name.removesuffix('json')}{ending}" if is_model else name, content)
    # The danger is real.
    with contextlib.suppress(Exception):
        torch.export.load(evil)
    assert marker.exists()
    marker.unlink()

    with pytest.raises(ModelError, match=r"holds (code where a size should be|'.*model\.(jsox|JSON)')"):
        load_archive(evil)

    assert not marker.exists()


@pytest.mark.parametrize("entry", ["opaque_obj_0", "Opaque_Obj_0"])
def test_opaque_objects_are_not_unpickled(archive: Path, tmp_path: Path, entry: str) -> None:
    marker = tmp_path / "ran"
    config = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}

    def change(name: str, content: bytes) -> bytes:
        is_list = name.endswith("model_constants_config.json")
        return json.dumps({"config": {"evil": config}}).encode() if is_list else content

    extra = {f"data/constants/{entry}": pickle.dumps(RunsCode(marker))}
    evil = rewritten(archive, tmp_path / "evil.pt2", change, extra)
    with contextlib.suppress(Exception):
        torch.export.load(evil)
    assert marker.exists()
    marker.unlink()

    with pytest.raises(ModelError, match=rf"holds '.*/{entry}'"):
        load_archive(evil)

    assert not marker.exists()


def test_a_list_of_constants_that_names_an_opaque_object_is_refused(archive: Path, tmp_path: Path) -> None:
    config = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": {"dtype": 7}}

    def change(name: str, content: bytes) -> bytes:
        is_list = name.endswith("model_constants_config.json")
        return json.dumps({"config": {"evil": config}}).encode() if is_list else content

    with pytest.raises(ModelError, match="'opaque_obj_0', which is no plain tensor"):
        load_archive(rewritten(archive, tmp_path / "evil.pt2", change, {}))


def test_operators_that_open_files_are_refused(archive: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(bytes(4000))

    def overwrite(program: dict) -> None:
        graph = program["graph_module"]["graph"]
        meta = next(iter(graph["tensor_values"].values()))
        graph["tensor_values"]["file"] = meta | {"sizes": [{"as_int": 64}], "strides": [{"as_int": 1}]}
        graph["tensor_values"]["filled"] = graph["tensor_values"]["file"]
        graph["nodes"][:0] = [
            call("aten.from_file.default", "file", filename={"as_string": str(victim)}, shared={"as_bool": True},
                 size={"as_int": 64}),
            call("aten.fill_.Scalar", "filled", self={"as_tensor": {"name": "file"}}, value={"as_int": 7}),
        ]  # fmt: skip

    evil = rewritten(archive, tmp_path / "evil.pt2", on_graph(overwrite), {})
    # The danger is real.
    torch.export.load(evil).module(check_guards=False)(torch.rand(2, 3, 8, 8))
    assert any(victim.read_bytes())
    victim.write_bytes(bytes(4000))

    with pytest.raises(ModelError, match=r"calls 'torch\.ops\.aten\.from_file\.default'"):
        load_archive(evil)

    assert not any(victim.read_bytes())


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        pytest.param({"as_operator": "torch.os.system"}, "holds as_operator", id="function"),
        pytest.param({"as_graph": {"name": "g", "graph": {}}}, "holds as_graph", id="graph"),
        pytest.param({"as_strings": ["touch file"]}, "holds as_strings", id="texts"),
        pytest.param({"as_custom_obj": {"name": "x", "class_fqn": "y"}}, "holds as_custom_obj", id="object"),
        pytest.param({"as_string": "/etc/passwd"}, "passes the text '/etc/passwd'", id="path"),
        pytest.param({"as_tensor": {"name": "x):\n    import os\ndef f("}}, "holds the name", id="code-for-a-name"),
    ],
)
def test_arguments_that_are_no_numbers_tensors_or_modes_are_refused(
    archive: Path, tmp_path: Path, argument: dict, says: str
) -> None:
    def change(program: dict) -> None:
        program["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = argument

    with pytest.raises(ModelError, match=says):
        load_archive(rewritten(archive, tmp_path / "evil.pt2", on_graph(change), {}))


@pytest.mark.parametrize(
    "container",
    [
        pytest.param(
            {"type": "collections.defaultdict", "context": {"default_factory_module": "this"}, "children_spec": []},
            id="imports-a-module",
        ),
        pytest.param(
            {"type": "builtins.dict", "context": '[{"__enum__": true, "fqn": "this:d"}]', "children_spec": []},
            id="imports-an-enumeration",
        ),
    ],
)
def test_containers_that_import_are_refused(archive: Path, tmp_path: Path, container: dict) -> None:
    def change(program: dict) -> None:
        program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, container])

    with pytest.raises(ModelError, match="container that is no tuple, list or dict"):
        load_archive(rewritten(archive, tmp_path / "evil.pt2", on_graph(change), {}))


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
    def change(program: dict) -> None:
        program["added"] = {"as_expr": {"expr_str": expression}}

    evil = rewritten(archive, tmp_path / "evil.pt2", on_graph(change), {})

    with pytest.raises(ModelError, match="code where a size should be"):
        load_archive(evil)


@pytest.mark.parametrize(
    "target",
    [
        "torch.load", "torch.ops.load_library", "torch.ops.aten.__class__.mro", "_operator.methodcaller", "#ext:x",
        "torch.ops.aten.save.default", "torch.ops.debugprims.load_tensor.default", "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten.format.default", "torch.ops.profiler._record_function_enter.default",
        "torch.ops.higher_order.hints_wrapper", "torch.ops.aten._print.default", "torch.ops.aten.no_such.default",
    ],
)  # fmt: skip
def test_calls_that_are_no_operators_are_refused(archive: Path, tmp_path: Path, target: str) -> None:
    def change(program: dict) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    evil = rewritten(archive, tmp_path / "evil.pt2", on_graph(change), {})

    with pytest.raises(ModelError, match=rf"calls {re.escape(repr(target))}"):
        load_archive(evil)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param([], id="list"),
        pytest.param({}, id="empty"),
        pytest.param({"graph_module": {"graph": {"nodes": [3]}}}, id="node-is-a-number"),
        pytest.param(
            {"graph_module": {"graph": {"nodes": [{"target": "torch.ops.aten.relu.default", "metadata": "x"}]}}},
            id="remarks-are-text",
        ),
    ],
)
def test_json_that_is_no_program(archive: Path, tmp_path: Path, program: object) -> None:
    def change(name: str, content: bytes) -> bytes:
        return json.dumps(program).encode() if name.endswith("models/model.json") else content

    with pytest.raises(ModelError, match=r"holds no exported program|is damaged"):
        load_archive(rewritten(archive, tmp_path / "odd.pt2", change, {}))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_truncated_archive(archive: Path, tmp_path: Path, share: float) -> None:
    whole = archive.read_bytes()
    (tmp_path / "half.pt2").write_bytes(whole[: int(share * len(whole))])

    with pytest.raises(ModelError, match=r"half\.pt2 is damaged"):
        load_archive(tmp_path / "half.pt2")
