"""A graph over a flat list of tensors, with the model's own signature around it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from unit_fast.errors import DataError
from unit_fast.fusion.rewrite import copy_graph, tidy

Key = tuple[tuple[torch.Size, torch.dtype, torch.device], ...]


class FlatGraph:
    """A captured graph, called with and returning flat sequences of tensors.

    Attributes:
        module: the graph; its placeholders are tensors only, and its output is a tuple of tensors: numbers and None
            that the model returns come in by ``unflatten``.
        batched_inputs: which of its inputs have the batch as their first dimension.
        tensor_outputs: of what the graph was to compute for its output, which are tensors and not sizes.
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self.module = copy_graph(graph_module)
        codegen: Any = self.module.graph._codegen
        self._output_spec = codegen.pytree_info.out_spec
        placeholders = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        self._flatten = _flattener(placeholders, codegen)
        # Most models take tensors by position; binding and flattening them takes 5 µs a call, more in a cold cache.
        by_position = pytree.tree_structure(((0,) * len(placeholders), {})) == codegen.pytree_info.in_spec
        self._by_position = len(placeholders) if by_position and all(map(_is_tensor, placeholders)) else -1
        for node in placeholders:
            if not _is_tensor(node):  # numbers and None, of which capture has made constants
                self.module.graph.erase_node(node)
        shapes = [node.meta["val"].shape for node in placeholders if _is_tensor(node)]
        self.batched_inputs = [
            index for index, shape in enumerate(shapes) if shape and isinstance(shape[0], torch.SymInt)
        ]
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        self._leaves = list(pytree.tree_leaves(output.args[0]))
        computed = [leaf for leaf in self._leaves if isinstance(leaf, fx.Node)]
        self.tensor_outputs = [not _is_size(node) for node in computed]
        # Most models return one tensor, and counting makes a pair of it: as they come, without nesting them anew.
        tensors_only = all(self.tensor_outputs) and len(computed) == len(self._leaves)
        self._one_tensor = tensors_only and self._output_spec == pytree.tree_structure(0)
        self._tuple = tensors_only and self._output_spec == pytree.tree_structure((0,) * len(computed))
        self.module.graph.set_codegen(fx.graph.CodeGen())
        self._sizes = None
        if not all(self.tensor_outputs):
            output.args = (tuple(node for node in computed if _is_size(node)),)
            self._sizes = copy_graph(self.module)
            tidy(self._sizes)
        output.args = (tuple(node for node in computed if not _is_size(node)),)
        tidy(self.module)

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors of a call, as they lie, in the order of the graph's inputs."""
        if len(args) == self._by_position and not kwargs and all(isinstance(given, Tensor) for given in args):
            return list(args)
        return list(self._flatten(*args, **kwargs))

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The same, each contiguous."""
        return [tensor.contiguous() for tensor in self.tensors(args, kwargs)]

    def unflatten(self, outputs: Any, inputs: Sequence[Tensor]) -> Any:
        """What the model returns, from what the graph returns on ``inputs``."""
        if self._one_tensor:
            return outputs[0]
        if self._tuple:
            return tuple(outputs)
        tensors, sizes = iter(outputs), iter(() if self._sizes is None else self._sizes(*inputs))
        kinds = iter(self.tensor_outputs)
        leaves = [
            next(tensors if next(kinds) else sizes) if isinstance(leaf, fx.Node) else leaf for leaf in self._leaves
        ]
        return pytree.tree_unflatten(leaves, self._output_spec)


def key_of(inputs: Sequence[Tensor]) -> Key:
    """By which it is known whether such inputs have come before."""
    return tuple([(tensor.shape, tensor.dtype, tensor.device) for tensor in inputs])


def require_devices(inputs: Sequence[Tensor], devices: Sequence[torch.device]) -> None:
    """Raise DataError unless every input is on its device; single numbers may be anywhere."""
    for number, (tensor, device) in enumerate(zip(inputs, devices, strict=True)):
        if tensor.ndim and tensor.device != device:
            raise DataError(
                f"input {number} is on {tensor.device} and the model on {device}; move one of them with .to()"
            )


def _is_tensor(placeholder: fx.Node) -> bool:
    return isinstance(placeholder.meta.get("val"), Tensor)


def _is_size(node: fx.Node) -> bool:
    """Whether the graph computes a number there, such as the batch size, and no tensor."""
    return isinstance(node.meta.get("val"), int | float | torch.SymInt | torch.SymFloat | torch.SymBool)


def _flattener(placeholders: list[fx.Node], codegen: Any) -> fx.GraphModule:
    """A graph that takes what the model takes and returns the tensors in it: arguments bind as they do there."""
    graph = fx.Graph()
    inputs = [graph.placeholder(str(node.target)) for node in placeholders]
    tensors = tuple(given for given, node in zip(inputs, placeholders, strict=True) if _is_tensor(node))
    graph.output(tensors)
    _, spec = pytree.tree_flatten(list(tensors))
    own = copy.copy(codegen)
    own.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    graph.set_codegen(own)
    return fx.GraphModule({}, graph, class_name="Flatten")
