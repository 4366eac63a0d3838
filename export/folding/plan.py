"""What folding is going to change, gathered before anything is changed."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from unit_fast.capture import module_path
from unit_fast.export.folding.scale import same


@dataclass(frozen=True)
class Known:
    """A tensor whose scale is settled.

    Attributes:
        scale: the tensor stands for ``scale`` × what the folded graph computes.
        sites: whose bounds the scale came from.
        reason: why a site that reads the tensor cannot be folded into the layer before it.
        is_sum: whether it is a sum, which may be multiplied for the site that reads it.
    """

    scale: Tensor | None = None
    sites: frozenset[str] = frozenset()
    reason: str = ""
    is_sum: bool = False


@dataclass(frozen=True)
class Open:
    """A tensor with one reader whose scale can still be chosen, by multiplying the constants of ``layers``.

    Attributes:
        layers: convolutions, linear layers, products and sums with a constant.
        axis: of one sample, the only one along which their factor may vary; None for any.
    """

    layers: tuple[fx.Node, ...]
    axis: int | None


@dataclass
class Multiplication:
    """A node to be inserted: ``value × factor``, for some of its readers; on behalf of ``sites``."""

    value: fx.Node
    factor: Tensor
    readers: list[fx.Node]
    sites: frozenset[str]
    restores: bool


@dataclass(frozen=True)
class Outcome:
    """What became of one site; see :class:`unit_fast.export.folding.SiteFold`. ``size``: values of one sample."""

    folded: bool
    reason: str
    scale: Tensor | None
    size: int
    zero: bool = False


@dataclass
class Plan:
    """Everything that will be changed.

    Attributes:
        outputs: by layer, the factor of its results.
        inputs: by layer, the scale of its input, which its weights take up.
        multiplications: nodes to insert.
        activations: of folded sites; they become ReLUs.
        bounds: by clamp node, its new bound.
        sites: by name.
        layers_of: by site, the layers that were changed for it.
    """

    outputs: dict[fx.Node, Tensor] = field(default_factory=dict)
    inputs: dict[fx.Node, Tensor] = field(default_factory=dict)
    multiplications: list[Multiplication] = field(default_factory=list)
    activations: list[fx.Node] = field(default_factory=list)
    bounds: dict[fx.Node, Tensor] = field(default_factory=dict)
    sites: dict[str, Outcome] = field(default_factory=dict)
    layers_of: dict[str, set[fx.Node]] = field(default_factory=dict)

    def multiply(
        self, value: fx.Node, reader: fx.Node, factor: Tensor, sites: frozenset[str], *, restores: bool
    ) -> None:
        """``reader`` is to read ``value × factor``; readers that want the same share a node."""
        for made in self.multiplications:
            if made.value is value and same(made.factor, factor):
                made.readers.append(reader)
                return
        self.multiplications.append(Multiplication(value, factor, [reader], sites, restores))

    def settle(self, state: Open, factor: Tensor | None, sites: Iterable[str] = ()) -> None:
        """The open tensor is to be computed times ``factor``."""
        if factor is None or bool((factor == 1).all()):
            return
        for layer in state.layers:
            self.outputs[layer] = factor
            self._changed(layer, sites)

    def take_up(self, layer: fx.Node, state: Known) -> None:
        """The weights of ``layer`` are to take up the scale of its input."""
        if state.scale is not None:
            self.inputs[layer] = state.scale
            self._changed(layer, state.sites)

    def _changed(self, layer: fx.Node, sites: Iterable[str]) -> None:
        for site in sites:
            self.layers_of.setdefault(site, set()).add(layer)


def one() -> Tensor:
    """The scale of what is not scaled."""
    return torch.ones((), dtype=torch.float64)


def label(node: fx.Node) -> str:
    """The node as people know it: its module's path and its operator."""
    kind = str(node.target).removeprefix("aten.").partition(".")[0] if node.op == "call_function" else node.op
    path = module_path(node)
    return f"{path} ({kind})" if path else kind
