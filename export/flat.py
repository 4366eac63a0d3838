"""Sanitised graph ⇒ the same graph over flat tuples of tensors, which is how ONNX calls a model.

Names of inputs and outputs are made here, so that they depend on the model's signature and on nothing else.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from unit_fast.capture import Example, call_arguments
from unit_fast.errors import CaptureError
from unit_fast.fusion.rewrite import copy_graph, tidy
from unit_fast.sites import clamp_bound


@dataclass(frozen=True)
class FlatGraph:
    """A sanitised graph called with, and returning, a flat tuple of tensors.

    Attributes:
        module: the graph on the CPU; ``clamp_bound`` nodes carry their site in ``meta["site"]``.
        inputs: the example, one tensor an input.
        dynamic: for each input, which dimensions may vary.
        input_names: one for each input.
        output_names: one for each output.
        structure: how the model nests its outputs, as JSON: a leaf is an output's name or None, a sequence
            ``{"tuple": [...]}`` or ``{"list": [...]}``, a mapping ``{"dict": {...}}``.
        excess: which output is not the model's: how far each sample was driven beyond the bounds (``excess.py``).
    """

    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    dynamic: tuple[tuple[int, ...], ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    structure: Any
    excess: str | None = None

    def batch(self, size: int, scale: float = 1.0, noise: bool = False) -> tuple[Tensor, ...]:
        """Inputs for ``size`` samples: the example's rows in turn, floating ones times ``scale``.

        With ``noise``, every second row is drawn from a normal distribution of the example's spread (seed 0) instead,
        since rows of one image only ever reach the bounds of the channels it excites.
        """
        generator = torch.Generator().manual_seed(0)
        made = []
        for tensor, dynamic in zip(self.inputs, self.dynamic, strict=True):
            if 0 not in dynamic:
                made.append(tensor)
                continue
            rows = tensor[torch.arange(size) % tensor.shape[0]]
            if tensor.is_floating_point():
                if noise:
                    spread = tensor.float().pow(2).mean().sqrt().item() or 1.0
                    drawn = torch.randn(rows.shape, generator=generator) * spread
                    rows = rows.clone()
                    rows[1::2] = drawn.to(rows.dtype)[1::2]
                rows = rows * scale
            made.append(rows)
        return tuple(made)


def flatten_graph(sanitised: fx.GraphModule, example_input: Example) -> FlatGraph:
    """Flatten the signature of a sanitised graph.

    Args:
        sanitised: what ``insert_bounds`` returned; left as it is.
        example_input: what the model is called with.

    Raises:
        CaptureError: the example does not have the structure the graph was captured with.
    """
    args, kwargs = call_arguments(example_input)
    module = copy_graph(sanitised)
    info = module.graph._codegen.pytree_info  # type: ignore[attr-defined]
    try:
        leaves = fx_pytree.tree_flatten_spec((args, kwargs), info.in_spec)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise CaptureError(
            f"example_input does not have the structure the model was captured with: {error}; call arguments are "
            f"expected as in {info.in_spec}"
        ) from error
    output = next(node for node in module.graph.nodes if node.op == "output")
    results = pytree.tree_leaves(output.args[0])
    module.graph.set_codegen(fx.graph.CodeGen())
    inputs: list[Tensor] = []
    dynamic: list[tuple[int, ...]] = []
    input_names: list[str] = []
    for node, leaf in zip([node for node in module.graph.nodes if node.op == "placeholder"], leaves, strict=True):
        if not isinstance(leaf, Tensor):
            if node.users:
                raise CaptureError(f"the input {node.name} is a {type(leaf).__name__}; only tensors can vary in ONNX")
            module.graph.erase_node(node)
            continue
        value = node.meta.get("val", leaf)
        inputs.append(leaf.detach().cpu())
        dynamic.append(tuple(axis for axis, size in enumerate(value.shape) if not isinstance(size, int)))
        input_names.append(str(node.target))
    structure, output_names, kept = _outputs(results, info.out_spec, input_names)
    output.args = (tuple(kept),)
    tidy(module)
    return FlatGraph(module, tuple(inputs), tuple(dynamic), tuple(input_names), output_names, structure)


def in_dtype(graph: FlatGraph, dtype: torch.dtype) -> FlatGraph:
    """The same graph computing in ``dtype`` instead of float32, over tensors of its own; its example stays as it is."""
    module = copy_graph(graph.module)
    for node in module.graph.nodes:
        # Casts to float32 would meet weights of another dtype.
        node.args, node.kwargs = pytree.tree_map(
            lambda leaf: dtype if leaf is torch.float32 else leaf, (node.args, dict(node.kwargs))
        )
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point():
            node.meta["val"] = value.to(dtype)
    module.recompile()
    return replace(graph, module=copy.deepcopy(module).to(dtype))


def _outputs(leaves: list[Any], spec: Any, taken: list[str]) -> tuple[Any, tuple[str, ...], list[fx.Node]]:
    """How outputs nest, the names of those that are tensors (none of them ``taken``), and their nodes."""
    names: list[str] = []
    kept: list[fx.Node] = []

    def name_leaf(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Mapping):
            return {"dict": {str(key): name_leaf(item, (*path, str(key))) for key, item in value.items()}}
        if isinstance(value, tuple | list):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [name_leaf(item, (*path, str(index))) for index, item in enumerate(value)]}
        leaf = leaves[value]
        if not isinstance(leaf, fx.Node):
            return None
        name = "_".join(path) or "output"
        if name[0].isdigit():
            name = f"output_{name}"
        while name in names or name in taken:
            name += "_"
        names.append(name)
        kept.append(leaf)
        return name

    nested = pytree.tree_unflatten(list(range(len(leaves))), spec)
    try:
        structure = name_leaf(nested, ())
    except (TypeError, IndexError):
        # A container of the model's own, registered with pytree: its outputs are served by number.
        names.clear()
        kept.clear()
        structure = name_leaf(tuple(range(len(leaves))), ())
    return structure, tuple(names), kept


def evaluate_sites(
    graph: FlatGraph, inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor], dict[str, Tensor]]:
    """Run the reference: its outputs, and by site the activation before and after its clamp."""
    recorder = _Recorder(graph.module)
    with torch.no_grad():
        outputs = recorder.run(*inputs)
    return tuple(outputs), recorder.before, recorder.after


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.target is clamp_bound:
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            self.before[n.meta["site"]] = arguments[0]
            self.after[n.meta["site"]] = result
        return result
