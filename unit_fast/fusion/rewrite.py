"""What every graph pass needs: copying, reading and adding constants, and tidying up after."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn


def constant(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor that ``node`` reads from the module, or None when it is anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = module
    for name in str(node.target).split("."):
        value = getattr(value, name, None)
    return value if isinstance(value, Tensor) else None


def set_constant(module: fx.GraphModule, path: str, value: Tensor) -> None:
    """Store ``value`` under ``path``: as a parameter where one stood there, else as a buffer.

    Intermediate modules are made as needed. Nothing asks for gradients.
    """
    prefix, _, name = path.rpartition(".")
    owner: nn.Module = module
    for part in prefix.split(".") if prefix else ():
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if name in owner._parameters:
        setattr(owner, name, nn.Parameter(value, requires_grad=False))
    elif name in owner._buffers:
        setattr(owner, name, value)
    else:
        owner.register_buffer(name, value)


def add_constant(module: fx.GraphModule, path: str, value: Tensor, before: fx.Node) -> fx.Node:
    """A new ``get_attr`` node before ``before`` that reads ``value``, stored under ``path``, made unique if taken."""
    taken = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    unique, number = path, 1
    while unique in taken:
        unique, number = f"{path}_{number}", number + 1
    set_constant(module, unique, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(unique)
    fake = before.meta.get("val")
    mode = getattr(fake, "fake_mode", None)
    node.meta["val"] = mode.from_tensor(value, static_shapes=True) if mode is not None else value
    return node


def call(
    module: fx.GraphModule, target: torch._ops.OpOverload, args: tuple[Any, ...], like: fx.Node, before: fx.Node
) -> fx.Node:
    """A new call of ``target`` before ``before`` whose result has the shape and the place in the model of ``like``."""
    with module.graph.inserting_before(before):
        node = module.graph.call_function(target, args)
    node.meta = {key: like.meta[key] for key in ("val", "nn_module_stack", "stack_trace") if key in like.meta}
    return node


def copy_graph(module: fx.GraphModule) -> fx.GraphModule:
    """A graph module with a graph of its own that shares the tensors of ``module``."""
    graph = fx.Graph()
    copied_output: Any = graph.graph_copy(module.graph, {}, return_output_node=True)
    output, original = copied_output
    graph.output(output).meta = dict(original.meta)
    graph.set_codegen(copy.copy(module.graph._codegen))
    attributes = {str(node.target): constant(module, node) for node in graph.nodes if node.op == "get_attr"}
    copied = fx.GraphModule(attributes, graph, class_name=type(module).__name__)
    copied.meta.update(module.meta)
    copied.eval()
    return copied


def tidy(module: fx.GraphModule) -> None:
    """Drop nodes and constants that nothing reads any more, check the graph and recompile it."""
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
        if name not in read:
            prefix, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(prefix), leaf)
    module.graph.lint()
    module.recompile()
