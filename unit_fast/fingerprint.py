"""Which model bounds belong to: hashes over its weights and its graph."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a model.

    Attributes:
        graph: SHA-256 over the operators, their constants and how they are connected.
        tensors: SHA-256 by name of each parameter and buffer that the graph reads: dtype, shape and bytes.
    """

    graph: str
    tensors: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """One hash over all of it."""
        digest = hashlib.sha256(self.graph.encode())
        for name, value in sorted(self.tensors.items()):
            digest.update(f"{name}={value};".encode())
        return digest.hexdigest()

    def differences(self, other: "Fingerprint") -> list[str]:
        """What differs from ``other``, a line each; empty when they are of the same model."""
        missing = [f"{name} is missing" for name in self.tensors if name not in other.tensors]
        extra = [f"{name} is not expected" for name in other.tensors if name not in self.tensors]
        changed = [
            f"{name} has other values"
            for name, value in self.tensors.items()
            if name in other.tensors and other.tensors[name] != value
        ]
        graph = [] if self.graph == other.graph else ["the graph has other operators"]
        return graph + missing + extra + changed


def fingerprint(module: fx.GraphModule) -> Fingerprint:
    """Fingerprint of a captured graph, the same on every device."""
    numbers = {node: index for index, node in enumerate(module.graph.nodes)}
    graph = hashlib.sha256()
    tensors: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for name in node.target.split("."):
                value = getattr(value, name)
            if isinstance(value, Tensor) and node.users:
                tensors[node.target] = tensor_sha256(value)
        target = node.target if isinstance(node.target, str) else str(node.target)
        if callable(node.target) and not isinstance(node.target, torch._ops.OpOverload):
            target = getattr(node.target, "__name__", target)
        graph.update(f"{node.op} {target} {_canonical((node.args, node.kwargs), numbers)}\n".encode())
    return Fingerprint(graph.hexdigest(), tensors)


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and values of ``tensor``, wherever it lies."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _canonical(value: Any, numbers: dict[fx.Node, int]) -> str:
    if isinstance(value, fx.Node):
        return f"%{numbers[value]}"
    if isinstance(value, tuple | list):
        return "[" + ",".join(_canonical(item, numbers) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_canonical(item, numbers)}" for key, item in sorted(value.items())) + "}"
    if isinstance(value, torch.device):
        return "device"
    return repr(value)
