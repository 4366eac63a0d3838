"""Let through the graph of a ``.pt2`` archive only what is known to compute and to do nothing else.

torch looks operators up by attribute access, evaluates sizes with sympy, imports what container types name, and writes
the names of nodes into source code that it compiles. Hence every string in the graph must be of a known kind; there is
no string that is let through because nothing is known against it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch


class RefusedError(Exception):
    """Something in an archive that is no graph or tensor; the text continues "--model FILE"."""


# Of nodes, values and symbols: they become variables in compiled code.
_NAME = re.compile(r"(?!__)[A-Za-z_]\w*|", re.ASCII)
# Of parameters, modules, types: as _NAME, with dots between; torch counts repeated calls as "name@1".
_PATH = re.compile(r"(?!__)[\w@+ -]*(\.(?!__)[\w@+ -]+)*", re.ASCII)
_PATH_KEYS = ("fqn", "parameter_name", "buffer_name", "tensor_constant_name", "torch_version", "path_name")
_NUMBER = re.compile(r"-?Infinity|NaN", re.ASCII)
_STACK = re.compile(r"[\w.,;@+<>()\[\]' -]*", re.ASCII)
_CODE_LIKE = ("as_graph", "as_operator", "as_custom_obj", "as_string_to_argument", "as_strings", "custom_obj")

_OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.((?!__)[A-Za-z_]\w*)\.((?!__)[A-Za-z_]\w*)", re.ASCII)
_ARITHMETIC = re.compile(
    r"torch\.sym_(int|float|max|min|not|sum|ite|sqrt)|math\.(trunc|ceil|floor|sqrt)|"
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|lt|le|gt|ge|eq|ne|and_|or_|not_|xor|getitem)"
)
# Files, and what belongs to the tensor's memory or to torch itself.
_TOUCHING = re.compile(
    r"from_file|save|load|import|print|set_data|get_autocast|is_autocast|manual_seed|\w*(storage|unsafe_(?!view))"
)
# A leading underscore marks the insides of other operators, many without checks of their own. These are what the
# decompositions of torch.export leave in a graph.
_INTERNAL = re.compile(
    r"_(assert_(scalar|async|tensor_metadata)|functional_assert_(scalar|async)|softmax|log_softmax|safe_softmax|to_copy|"
    r"unsafe_view|native_batch_norm_legit\w*|batch_norm\w*|adaptive_avg_pool[23]d|convolution|prelu_kernel|cdist_forward|"
    r"scaled_dot_product_\w*attention\w*|upsample_\w+|fft_(c2c|c2r|r2c)|weight_norm|weight_norm_interface|trilinear|"
    r"native_multi_head_attention|transformer_encoder_layer_fwd|local_scalar_dense|conj|linalg_(svd|eigh|det|slogdet|solve_ex))"
)
_SAFE_TYPES = re.compile(
    r"(Optional\[|List\[)*(Tensor|int|float|bool|number|Scalar|SymInt|SymFloat|SymBool|complex|Device|Layout|"
    r"ScalarType|MemoryFormat|QScheme|Generator|str)(\[\d*\])?\]*"
)
# The arguments of operators that are text, and all that they may say.
_TEXT_ARGUMENTS = (
    "approximate", "mode", "padding", "padding_mode", "rounding_mode", "reduce", "reduction", "norm", "ord", "indexing",
    "interpolation", "UPLO", "driver", "side", "activation", "p", "interpolate_mode", "equation", "assert_msg", "msg",
)  # fmt: skip
_WORDS = (
    "", "none", "tanh", "same", "valid", "constant", "zeros", "reflect", "replicate", "circular", "border",
    "reflection", "nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area", "floor",
    "trunc", "sum", "mean", "prod", "amax", "amin", "max", "min", "backward", "ortho", "forward", "ij", "xy",
    "lower", "higher", "midpoint", "left", "right", "fro", "nuc", "L", "U", "relu", "gelu", "silu",
)  # fmt: skip
_EQUATION = re.compile(r"[A-Za-z,.> -]*", re.ASCII)
_ASSERTIONS = {"_assert_scalar", "_assert_async", "_functional_assert_scalar", "_functional_assert_async"}

# Sizes are written as sympy's constructors: Mul(Integer(2), Symbol('s0', integer=True)).
_SIZE_TOKEN = re.compile(
    r"Symbol\('(?!__)[A-Za-z_]\w*'|Float\('[\d.e+-]+'|"
    r"(Integer|Rational|Add|Mul|Pow|Abs|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt|floor|"
    r"ceiling|ModularIndexing|Where|Piecewise|ExprCondPair|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|ToFloat|"
    r"TruncToInt|TruncToFloat|RoundToInt|RoundDecimal|Identity|OpaqueUnaryFn_sqrt|LShift|RShift|And|Or|Not|Equality|"
    r"Unequality|GreaterThan|LessThan|StrictGreaterThan|StrictLessThan)\(|"
    r"\b(integer|positive|nonnegative|negative|nonzero|real|finite)=(True|False)|\bprecision=\d+|"
    r"\b(true|false|oo|True|False)\b|-?\b\d+\b|[), ]",
    re.ASCII,
)
_SIZE_LENGTH = 20_000
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def clean_program(program: Any) -> Any:
    """The JSON of ``models/model.json``, checked, without guards and without remarks but for the modules' names.

    Raises:
        RefusedError: it calls anything but operators of ATen on tensors, or holds text of an unknown kind.
    """
    if not isinstance(program, dict):
        raise RefusedError("holds no exported program")
    # Python source that torch evaluates when the program is called; capture() checks the inputs by itself.
    program = program | {"guards_code": []}
    module = _part(program, "graph_module", dict)
    module["metadata"] = {}
    for node in _part(_part(module, "graph", dict), "nodes", list):
        _clean_node(node)
    _check_text(program)
    return program


def clean_tensors(config: Any, payload: re.Pattern[str]) -> Any:
    """The JSON that lists the tensors of an archive, checked: each a plain one, in an entry that ``payload`` matches.

    Raises:
        RefusedError: a tensor is pickled, or no tensor.
    """
    for name, entry in _part(config, "config", dict).items():
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False or not entry.get("tensor_meta"):
            raise RefusedError(f"holds a pickled object ({name[:80]!r}), which is not loaded")
        path = entry.get("path_name")
        if not isinstance(path, str) or not payload.fullmatch(path):
            raise RefusedError(f"keeps {name[:80]!r} in {str(path)[:80]!r}, which is no plain tensor")
    _check_text(config)
    return config


def _part(whole: Any, key: str, kind: type) -> Any:
    part = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(part, kind):
        raise RefusedError(f"holds no exported program: {key} is missing")
    return part


def _clean_node(node: Any) -> None:
    target = _part(node, "target", str)
    _check_operator(target)
    stack = (node.get("metadata") or {}).get("nn_module_stack")
    node["metadata"] = {"nn_module_stack": stack} if isinstance(stack, str) and _STACK.fullmatch(stack) else {}
    operator = _OPERATOR.fullmatch(target)
    for item in _part(node, "inputs", list):
        argument = _part(item, "arg", dict)
        if "as_string" not in argument or operator is None:
            continue
        if operator[2] in _ASSERTIONS and item.get("name") in ("assert_msg", "msg"):
            argument["as_string"] = ""
        elif operator[2] == "einsum" and item.get("name") == "equation":
            if not isinstance(argument["as_string"], str) or not _EQUATION.fullmatch(argument["as_string"]):
                raise RefusedError(f"passes {str(argument['as_string'])[:80]!r} to {target}")
            argument["as_string"] = _Equation(argument["as_string"])


class _Equation(str):
    """The text of an einsum that has been checked."""

    __slots__ = ()


def _check_operator(target: str) -> None:
    if _ARITHMETIC.fullmatch(target):
        return
    if target.startswith("torch.ops.higher_order."):
        raise RefusedError(
            f"calls {target[:80]!r}, which holds a graph of its own (of torch.no_grad, autocast, or a branch); "
            "export program.run_decompositions(), or leave it out of forward()"
        )
    found = _OPERATOR.fullmatch(target)
    operator = None
    if found and not _TOUCHING.match(found[2]) and (found[2][0] != "_" or _INTERNAL.fullmatch(found[2])):
        packet = getattr(getattr(torch.ops, found[1]), found[2], None)
        operator = getattr(packet, found[3], None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
    if not isinstance(operator, torch._ops.OpOverload):
        raise RefusedError(f"calls {target[:80]!r}; expected operators of torch.ops.aten that compute, and no others")
    for argument in operator._schema.arguments:
        kind = str(argument.type)
        if not _SAFE_TYPES.fullmatch(kind) or ("str" in kind and argument.name not in _TEXT_ARGUMENTS):
            raise RefusedError(f"calls {target!r}, whose {argument.name} can be more than numbers and tensors")


def _check_text(content: Any) -> None:
    """Look at every string, wherever in the JSON it stands."""
    pending = [(content, "")]
    while pending:
        item, key = pending.pop()
        if isinstance(item, Mapping):
            for name, value in item.items():
                if name in _CODE_LIKE and (value or name != "as_strings"):
                    raise RefusedError(f"holds {name}, which stands for code or objects")
                if not _PATH.fullmatch(name):
                    raise RefusedError(f"holds the name {name[:80]!r}, which is none")
                pending.append((value, name))
        elif isinstance(item, list):
            pending.extend((value, key) for value in item)
        elif isinstance(item, str):
            _check_string(item, key)


def _check_string(text: str, key: str) -> None:
    if isinstance(text, _Equation):
        return
    if key == "expr_str":
        if len(text) > _SIZE_LENGTH or _SIZE_TOKEN.sub("", text):
            raise RefusedError(f"holds code where a size should be: {text[:80]!r}")
    elif key == "target":
        _check_operator(text)
    elif key == "as_string":
        if text not in _WORDS:
            raise RefusedError(f"passes the text {text[:80]!r} to an operator")
    elif key in ("in_spec", "out_spec"):
        _check_containers(text)
    elif key == "nn_module_stack":
        if not _STACK.fullmatch(text):
            raise RefusedError(f"holds the module names {text[:80]!r}")
    elif key in ("as_float", "as_floats", "min_val", "max_val", "real", "imag"):
        if not _NUMBER.fullmatch(text):
            raise RefusedError(f"holds {text[:80]!r} where a number should be")
    elif not (_PATH if key in _PATH_KEYS else _NAME).fullmatch(text):
        raise RefusedError(f"holds the name {text[:80]!r}, which is none")


def _check_containers(text: str) -> None:
    """Look at the description of nested containers: other types than Python's own are imported by name."""
    if text == "":
        return
    pending = [json.loads(text)]
    if not isinstance(pending[0], list) or len(pending[0]) != 2 or pending[0][0] != 1:  # the version, and the outermost
        raise RefusedError(f"holds the containers {text[:80]!r} of another torch")
    pending = pending[0][1:]
    while pending:
        item = pending.pop()
        context = item.get("context") if isinstance(item, dict) else ""
        keys = json.loads(context) if isinstance(context, str) and context else context
        plain = keys is None or (isinstance(keys, list) and all(isinstance(k, int) or _is_path(k) for k in keys))
        if not isinstance(item, dict) or item.get("type") not in _CONTAINERS or not plain:
            raise RefusedError(f"takes or returns a container that is no tuple, list or dict: {str(item)[:80]}")
        pending.extend(_part(item, "children_spec", list))


def _is_path(text: Any) -> bool:
    return isinstance(text, str) and bool(_PATH.fullmatch(text))
