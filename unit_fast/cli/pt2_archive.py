"""Read ``.pt2`` archives of ``torch.export.save`` so that no code in them can run.

``torch.export.load`` unpickles what the archive asks it to, loads native libraries it finds inside, and evaluates the
archive's symbolic expressions as Python. A model handed over by others is looked through first.
"""

import ast
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from unit_fast.cli.model_error import ModelError

_NATIVE_CODE = re.compile(r"aotinductor/|\.(so|dll|dylib|cubin|ptx|hsaco)$")
_PICKLED_OBJECTS = re.compile(r"custom_obj|opaque_obj")
# What an exported graph may call: operators (torch.ops.NAMESPACE.NAME), and the arithmetic of sizes. torch looks the
# rest of the name up by getattr, from torch down, so nothing with a leading underscore in it.
_OPERATORS = re.compile(r"torch\.ops\.(?!load_library|import_module)[a-zA-Z]\w*(\.(?!__)\w+){1,2}")
_ARITHMETIC = re.compile(
    r"torch\.sym_\w+|math\.[a-z]\w*|"
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|lt|le|gt|ge|eq|ne|and_|or_|not_|xor|getitem)"
)
# Sizes are written as sympy's constructors: Mul(Integer(2), Symbol('s0', integer=True)).
_SIZE_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.keyword, ast.Name, ast.Load,
    ast.Constant, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
# S, Lambda and their like take text and evaluate it again, hence no text but in Symbol.
_SIZE_FUNCTION = re.compile(r"[A-Z]\w+|floor|ceiling|sqrt|log")


def load_archive(path: Path) -> torch.export.ExportedProgram:
    """Load an archive of ``torch.export.save`` that holds graph and tensors only.

    Raises:
        ModelError: missing, damaged, made by another torch, or holding pickled objects, native code or expressions that
            are no sizes.
    """
    if not path.is_file():
        raise ModelError(f"--model {path}: there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive, path)
    except (zipfile.BadZipFile, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"--model {path} is damaged, or no .pt2 archive: {error}") from error
    try:
        with _no_unpickling():
            return torch.export.load(path)
    except Exception as error:  # torch raises whatever its reader stumbles over
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"--model {path} does not load with torch {torch.__version__}: {first}; export it again with this version, "
            "or name the network with --model package.module:factory"
        ) from error


@contextmanager
def _no_unpickling() -> Iterator[None]:
    # torch's own switch: it turns every torch.load beneath torch.export.load, fallbacks too, into weights_only=True.
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _check(archive: zipfile.ZipFile, path: Path) -> None:
    for name in archive.namelist():
        if _NATIVE_CODE.search(name):
            raise ModelError(f"--model {path} holds native code ({name}), which is not run; use torch.export.save")
        if _PICKLED_OBJECTS.search(name):
            raise ModelError(f"--model {path} holds a pickled object ({name}), which is not loaded; export without it")
        if name.endswith(".json"):
            _check_graph(json.loads(archive.read(name)), path)


def _check_graph(content: Any, path: Path) -> None:
    """Look at every string that torch evaluates or looks up, wherever in the JSON it stands."""
    pending = [content]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            expression, target = item.get("expr_str"), item.get("target")
            if isinstance(expression, str) and not _is_size(expression):
                raise ModelError(f"--model {path} holds code where a size should be: {expression[:80]!r}")
            if isinstance(target, str) and not _is_operator(target):
                raise ModelError(f"--model {path} calls {target[:80]!r}; expected operators of torch.ops only")
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _is_operator(target: str) -> bool:
    return bool(_OPERATORS.fullmatch(target) or _ARITHMETIC.fullmatch(target))


def _is_size(expression: str) -> bool:
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, RecursionError):
        return False
    nodes = list(ast.walk(tree))
    names = {
        id(node.args[0])
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Symbol" and node.args
    }
    return all(_is_size_node(node, id(node) in names) for node in nodes)


def _is_size_node(node: ast.AST, is_symbol_name: bool) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) or (
            is_symbol_name and isinstance(node.value, str) and node.value.isidentifier()
        )
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and bool(_SIZE_FUNCTION.fullmatch(node.func.id))
    return isinstance(node, _SIZE_NODES)
