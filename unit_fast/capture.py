"""nn.Module -> plain graph: functional, any batch size, without dropout, BatchNorm folded.

The graph holds ATen operators only (``conv2d``, ``linear``, ``relu``, ``add``, …), called as the model is called.
Everything else in unit_fast (sites, calibration, fusion, export) works on it, never on the user's module.
"""

import inspect
import re
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unit_fast.errors import CaptureError
from unit_fast.fingerprint import fingerprint
from unit_fast.fusion.fold_batch_norm import fold_batch_norm
from unit_fast.fusion.gather_on_one_device import gather_on_one_device
from unit_fast.fusion.operators import ACTIVATIONS_INSIDE
from unit_fast.fusion.relax_views import relax_views
from unit_fast.fusion.remove_identities import remove_identities
from unit_fast.fusion.rewrite import tidy
from unit_fast.fusion.spell_alike import spell_alike
from unit_fast.guards import require_any_batch
from unit_fast.rounding import least_precise

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]

# torch.export and Inductor trace with process-wide state, and a model must not lose its mode to another's capture.
ONE_AT_A_TIME = threading.RLock()

# Tagged as random, but not so with the arguments that evaluation gives them; dropout is checked on its own.
_QUIET = re.compile(r"aten\.(\w*dropout|rrelu|\w*scaled_dot_product\w*|lstm|gru|rnn_tanh)\b")

# Largest difference relative to the largest output. The graph runs the module's own operators; what torch fuses when it
# runs eagerly, such as attention, rounds otherwise: 3e-7 was seen in float32, 2e-3 in float16, 9e-3 in bfloat16.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def capture(model: nn.Module | torch.export.ExportedProgram, example_input: Example) -> fx.GraphModule:
    """Capture ``model`` in evaluation mode as a plain graph.

    Args:
        model: the network, left exactly as it is, or a program exported from one in evaluation mode.
        example_input: what the model is called with: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments; ``({"a": a, "b": b},)`` for a model whose one argument is a dict. Its first tensor's first
            dimension is the batch, dynamic in the graph, for every tensor that shares it; one sample is enough. Not
            looked at when ``model`` is an exported program.

    Returns:
        A module called as the model is. It shares the model's weights, but for those that took up a BatchNorm.
        ``meta["fingerprint"]`` identifies the model for :class:`unit_fast.Bounds`.

    Raises:
        CaptureError: the model cannot be run on the example, or holds what has no plain graph: control flow that
            depends on the data, a fixed batch size, a buffer that changes while it runs. Names operator and place.
    """
    with ONE_AT_A_TIME:
        return _capture(_unwrapped(model), example_input)


def _capture(model: nn.Module | torch.export.ExportedProgram, example_input: Example) -> fx.GraphModule:
    if isinstance(model, torch.export.ExportedProgram):
        program = model
    elif isinstance(model, nn.Module):
        _reject_what_holds_no_code(model)
        args, kwargs = _at_least_two_samples(*call_arguments(example_input))
        program = _export(model, args, kwargs)
    else:
        raise CaptureError(
            f"model is a {type(model).__name__}; expected a torch.nn.Module or a torch.export.ExportedProgram"
        )
    with torch.no_grad(), _without_pytree_warnings():
        program = program.run_decompositions(dict(ACTIVATIONS_INSIDE))
        check_guards = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
        captured = _detached(program.module(**check_guards))
        _reject_unsupported(captured)
        relax_views(captured)  # first: maps may lie in memory otherwise than they did in the trace, as on a GPU
        if isinstance(model, nn.Module):
            _require_same_for_one_sample(model, captured, args, kwargs)
        remove_identities(captured)
        gather_on_one_device(captured)
        captured.graph.eliminate_dead_code()
        # By now the graph is the same whatever the device of the model and the memory layout of the example.
        captured.meta["fingerprint"] = fingerprint(captured)
        spell_alike(captured)  # after the fingerprint, so that bounds made before there was this pass still fit
        fold_batch_norm(captured)
        tidy(captured)
    return captured


def _unwrapped(model: Any) -> Any:
    """The module inside torch.compile's, DataParallel's and DistributedDataParallel's wrappers."""
    while isinstance(model, nn.Module):
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    return model


def call_arguments(example_input: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that ``example_input`` stands for."""
    if isinstance(example_input, Tensor):
        return (example_input,), {}
    if isinstance(example_input, tuple | list):
        return tuple(example_input), {}
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    raise CaptureError(
        f"example_input is a {type(example_input).__name__}; expected a tensor, a tuple of positional arguments, "
        "or a dict of keyword arguments"
    )


def hint_at_dicts(inputs: object) -> str:
    """What else to try where a model does not run on ``inputs``: a dict may be meant as one argument."""
    if not isinstance(inputs, Mapping) or not inputs:
        return ""
    return "; the dict was given as keyword arguments: put it into a tuple, ({...},), if the model takes it as it is"


def batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The batch size of a call: the first dimension of its first tensor that has one."""
    # Most often it is the first argument, and calls whose backend is chosen by their size ask for it each time.
    first = args[0] if args else None
    leaves = [first] if isinstance(first, Tensor) and first.ndim > 0 else pytree.tree_leaves((args, kwargs))
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return leaf.shape[0]
    raise CaptureError("example_input holds no tensor with a batch dimension; pass at least one, of shape (N, ...)")


def _at_least_two_samples(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # torch.export takes a dimension of size 0 or 1 in the example for a constant.
    size = batch_size(args, kwargs)
    if size == 0:
        raise CaptureError("example_input holds no sample: its batch dimension is 0; pass at least one")
    if size > 1:
        return args, kwargs

    def double(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == 1 else leaf

    doubled: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(double, (args, kwargs))
    return doubled


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    size = batch_size(args, kwargs)

    def dynamic(leaf: Any) -> dict[int, Any] | None:
        batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
        return {0: torch.export.Dim.DYNAMIC} if batched else None

    shapes: Any = pytree.tree_map(dynamic, (args, kwargs))
    with evaluation_mode(model), torch.no_grad(), _without_pytree_warnings():
        try:
            model(*args, **kwargs)
        except Exception as error:
            raise CaptureError(
                f"the model does not run on example_input: {_place(model, error)}{_first_line(error)}; "
                f"check the input's shape, dtype and device{hint_at_dicts(kwargs)}"
            ) from error
        try:
            program = torch.export.export(
                model,
                args,
                kwargs or None,
                dynamic_shapes=_by_parameter(model, shapes, args, kwargs),
            )
        except Exception as error:
            if "Constraints violated" in str(error):
                batched = sum(bool(leaf) for leaf in map(dynamic, pytree.tree_leaves((args, kwargs))))
                raise _fixed_batch_error("example_input", size, several=batched > 1) from error
            raise CaptureError(
                f"the model has no plain graph: {_place(model, error)}{_first_line(error)}; "
                "rewrite that operation so that it depends on shapes only, or pass a torch.export program"
            ) from error
    _require_dynamic_batch(program)
    require_any_batch(program)
    return program


def _by_parameter(model: nn.Module, shapes: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    positional, named = shapes
    if not kwargs:
        return positional
    names = list(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    return dict(zip(names, positional, strict=False)) | named


def _require_dynamic_batch(program: torch.export.ExportedProgram) -> None:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs and isinstance(value, Tensor):
            if value.ndim > 0 and isinstance(value.shape[0], int):
                raise _fixed_batch_error(node.name, value.shape[0])
            return


def _require_same_for_one_sample(
    model: nn.Module, captured: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """torch.export takes every batch to be of two samples or more, without a guard."""
    size = batch_size(args, kwargs)

    def first(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
        return leaf[:1] if batched else leaf

    args, kwargs = pytree.tree_map(first, (args, kwargs))
    with evaluation_mode(model):
        try:
            expected = pytree.tree_leaves(model(*args, **kwargs))
        except Exception:  # noqa: BLE001 - the model's own affair: it takes no single sample
            return
    found = pytree.tree_leaves(captured(*args, **kwargs))
    if len(found) != len(expected) or not all(map(_alike, found, expected)):
        raise CaptureError(
            "the model computes something else for a single sample than for the first of several; a graph has no "
            "branches, so compute the same for every batch size"
        )


def _alike(found: Any, expected: Any) -> bool:
    """Whether two outputs are the same but for rounding."""
    if not isinstance(expected, Tensor):
        return bool(found == expected)
    if not expected.is_floating_point():  # topk and argmax may break ties differently
        return bool(found.shape == expected.shape)
    finite = expected[expected.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 1.0
    if found.shape != expected.shape:
        return False
    allowed = _ROUNDING.get(least_precise(expected.is_cuda, expected.dtype), 5e-2) * largest
    close: bool = torch.allclose(found, expected, rtol=0, atol=allowed, equal_nan=True)
    return close


def _fixed_batch_error(name: str, size: int, *, several: bool = False) -> CaptureError:
    # A single sample is doubled for the capture, so that an input of two rows looks like a batch too.
    by_chance = (
        f"; or, if an input only happens to have {size} rows and is no batch, pass an example of another batch size, "
        f"such as {size + 1}"
    )
    return CaptureError(
        f"the model fixes the batch size of {name} to {size}, perhaps by a reshape that names it, or by len(x); let it "
        f"follow the input (x.shape[0] or flatten(1)) so that any batch can be served{by_chance if several else ''}"
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for a while; afterwards every module is in the mode it was in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


@contextmanager
def _without_pytree_warnings() -> Iterator[None]:
    # torch 2.13 copies its own tree specs in a way that it warns about.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)
        yield


def _detached(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph over tensors that share the model's storage and ask for no gradient."""
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    attributes: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = tensors.get(node.target)
            if value is None:
                value = _attribute(module, node.target)
            if isinstance(value, Tensor):
                detached = value.detach()
                value = nn.Parameter(detached, requires_grad=False) if isinstance(value, nn.Parameter) else detached
            attributes[node.target] = value
    detached_module = fx.GraphModule(attributes, module.graph, class_name="PlainGraph")
    detached_module.eval()
    return detached_module


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


_QUANTISED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized\b")


def _reject_what_holds_no_code(model: nn.Module) -> None:
    for path, module in model.named_modules():
        place = f"{path or 'the model'} is a {type(module).__name__}"
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(f"{place}, which torch.export does not take; pass the nn.Module that it was made from")
        if _QUANTISED.match(type(module).__module__):
            raise CaptureError(
                f"{place}, which is quantised; pass the model as it was before, in float32: "
                'sanitize(…, dtype="int8") and export_onnx(…, precision="int8") quantise it with its bounds'
            )


def _reject_unsupported(captured: fx.GraphModule) -> None:
    for node in captured.graph.nodes:
        if node.op == "placeholder" or node.op == "get_attr" or node.op == "output":
            continue
        place = f" in {module_path(node) or 'the model itself'}"
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                f"the operator {node.target}{place} holds a graph of its own, which cannot be sanitised; "
                "replace the branch or loop by plain tensor operations"
            )
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            buffer = node.args[0]
            raise CaptureError(
                f"the operator {node.target}{place} changes {getattr(buffer, 'target', buffer)} while the model runs; "
                "a model that keeps state between calls has no plain graph: move that out of forward()"
            )
        if (
            isinstance(node.target, torch._ops.OpOverload)
            and torch.Tag.nondeterministic_seeded in node.target.tags
            and not _QUIET.match(str(node.target))
        ):
            raise CaptureError(
                f"the operator {node.target}{place} draws random numbers, so the model has no one answer to compare "
                "with; let it draw only while it is trained (if self.training)"
            )
        if node.target is torch.ops.aten._native_batch_norm_legit.default or (
            node.target in (torch.ops.aten.dropout.default, torch.ops.aten.native_dropout.default)
            and node.args[-1] is True
        ):
            raise CaptureError(
                f"the operator {node.target}{place} is in training mode; call model.eval() before torch.export, and "
                "pass training=self.training to functions such as F.dropout"
            )


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that ``node`` was traced in; empty for the model itself."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = list(stack.values())[-1]
    return re.sub(r"@\d+", "", path)


def _place(model: nn.Module, error: BaseException) -> str:
    """Innermost module of ``model`` on the error's traceback, with its file's line of code."""
    paths = {module: path for path, module in model.named_modules()}
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = next(iter(frame.f_locals.values()), None)  # self, whatever the method calls it
        if isinstance(module, nn.Module) and module in paths and "call" not in frame.f_code.co_name:
            code = traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name).line
            found = f"in {paths[module] or 'the model itself'} ({type(module).__name__}), at `{code}`: "
    return found


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
