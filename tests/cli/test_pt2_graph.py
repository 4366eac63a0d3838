"""The program in an archive: only plain operators on numbers, tensors and sizes pass."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.archives import call, in_member, in_program
from unit_fast.cli.model_error import ModelError
from unit_fast.cli.pt2_archive import load_archive

Tamper = Callable[..., Path]


def test_operators_that_open_files_are_refused(tampered: Tamper, tmp_path: Path) -> None:
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

    evil = tampered(in_program(overwrite))
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
    tampered: Tamper, argument: dict, says: str
) -> None:
    def change(program: dict) -> None:
        program["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = argument

    with pytest.raises(ModelError, match=says):
        load_archive(tampered(in_program(change)))


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
def test_containers_that_import_are_refused(tampered: Tamper, container: dict) -> None:
    def change(program: dict) -> None:
        program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, container])

    with pytest.raises(ModelError, match="container that is no tuple, list or dict"):
        load_archive(tampered(in_program(change)))


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
def test_expressions_that_are_no_sizes_are_refused(tampered: Tamper, expression: str) -> None:
    def change(program: dict) -> None:
        program["added"] = {"as_expr": {"expr_str": expression}}

    with pytest.raises(ModelError, match="code where a size should be"):
        load_archive(tampered(in_program(change)))


@pytest.mark.parametrize(
    "target",
    [
        "torch.load", "torch.ops.load_library", "torch.ops.aten.__class__.mro", "_operator.methodcaller", "#ext:x",
        "torch.ops.aten.save.default", "torch.ops.debugprims.load_tensor.default", "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten.format.default", "torch.ops.profiler._record_function_enter.default",
        "torch.ops.higher_order.hints_wrapper", "torch.ops.aten._print.default", "torch.ops.aten.no_such.default",
    ],
)  # fmt: skip
def test_calls_that_are_no_operators_are_refused(tampered: Tamper, target: str) -> None:
    def change(program: dict) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(ModelError, match=rf"calls {re.escape(repr(target))}"):
        load_archive(tampered(in_program(change)))


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
def test_json_that_is_no_program(tampered: Tamper, program: object) -> None:
    with pytest.raises(ModelError, match=r"holds no exported program|is damaged"):
        load_archive(tampered(in_member("models/model.json", lambda _: json.dumps(program).encode())))
