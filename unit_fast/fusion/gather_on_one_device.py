"""x.to(device) => x, in a graph whose weights and inputs lie on one device; all else of it is brought there.

torch.export writes down the device that the trace had. The graph of a model on a GPU would else be another than that
of the same model on a CPU, stay behind when it is moved, and copy from the host in every call, which no CUDA graph can.
"""

from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.fusion.rewrite import constant, set_constant

_aten = torch.ops.aten


def gather_on_one_device(module: fx.GraphModule) -> int:
    """Bring constants and what is made anew to where weights and inputs are; returns how many moves are left out.

    A model that is spread over several devices stays as it is.
    """
    homes = {parameter.device for parameter in module.parameters()}
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    homes |= {value.device for value in values if isinstance(value, Tensor) and value.ndim}
    if len(homes) != 1:
        return 0
    (home,) = homes
    left_out = 0
    for node in list(module.graph.nodes):
        tensor = constant(module, node)
        if tensor is not None and tensor.device != home and not _is_put(node, tensor):
            set_constant(module, str(node.target), tensor.to(home))
        if node.target is _aten._to_copy.default and _leave_out(node):
            left_out += 1
    make_on(module, home)
    return left_out


def make_on(module: fx.GraphModule, device: torch.device) -> None:
    """Let operators that make tensors of nothing, such as arange, make them on ``device``."""
    moved = False
    for node in module.graph.nodes:
        if isinstance(node.kwargs.get("device"), torch.device) and node.kwargs["device"] != device:
            node.kwargs = node.kwargs | {"device": device}
            moved = True
    if moved:
        module.recompile()


def make_in(module: fx.GraphModule, before: torch.dtype, after: torch.dtype) -> None:
    """Let what is made or converted in ``before``, that of the weights, be in ``after``, which they are converted to.

    Whether the model asked for the dtype of its input or for this one by name, the trace does not tell.
    """
    if before == after:
        return
    for node in module.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs), lambda given: after if given is before else given
        )
    module.recompile()


def _is_put(node: fx.Node, tensor: Tensor) -> bool:
    """Whether it is the number in ``x[mask] = number``: torch fills in one on the CPU, and with one on a GPU it first
    waits to find the places."""
    return tensor.ndim == 0 and all(user.target is _aten.index_put.default for user in node.users)


def _leave_out(node: fx.Node) -> bool:
    """Keep of a copy what changes values or their layout; whether nothing is left of it."""
    source: Any = node.args[0]
    value = source.meta.get("val")
    kept = {name: node.kwargs[name] for name in ("dtype", "memory_format") if node.kwargs.get(name) is not None}
    if kept.get("memory_format") is torch.preserve_format:
        del kept["memory_format"]
    if isinstance(value, Tensor) and kept.get("dtype") == value.dtype:
        del kept["dtype"]
    node.kwargs = kept
    if kept:
        return False
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)
    return True
