"""Which sites int8 folds: all that can be, but where the layers behind would lose accuracy by it.

Folding gives every channel all 256 integers. It also multiplies the columns of the weights behind by the bounds, and
where those differ much, the small columns of a row round to nothing. Both are measured: every layer runs on
calibration data with its input and weights rounded as int8 will round them, in the graph as it is and in the folded
one. A site stays as it is, and takes an integer Min, where a layer behind it loses more than ``TOLERATED``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from unit_fast.calibration.samples import SampleStore
from unit_fast.export.flat import FlatGraph
from unit_fast.export.folding import fold_for
from unit_fast.export.forms.choice import Choice
from unit_fast.export.quantization.ranges import first_batch
from unit_fast.export.quantization.scales import LEVELS, for_range, quantise_weight
from unit_fast.fusion.operators import CONVOLUTIONS
from unit_fast.fusion.rewrite import constant
from unit_fast.sites import clamp_bound

_aten = torch.ops.aten
_LAYERS = CONVOLUTIONS | {_aten.linear.default}
# dB that a layer may lose by folding. An integer Min costs a few tenths of a per cent of the time: not much either.
TOLERATED = 1.0

_FOLDED = Choice("auto", ("min",), "all", folded_as=("min",), rescale=False)
_UNFOLDED = Choice("min", ("min",), "none")


@dataclass(frozen=True)
class Loss:
    """Signal to noise of the worst layer behind a site, in dB, without and with folding."""

    layer: str
    before: float
    after: float


def choose_folds(graph: FlatGraph, form: str, samples: SampleStore, bits: int) -> tuple[Choice, dict[str, Loss]]:
    """Decide what int8 folds.

    Args:
        graph: a sanitised graph.
        form: "auto", "min" for no folding, or "folded" for all that is legal.
        samples: calibration data, of which the first batch is used.
        bits: of weights.

    Raises:
        DataError: the calibration data does not fit the model.

    Returns:
        The choice for :func:`unit_fast.export.folding.fold_for`, and by site that stays unfolded, what it would lose.
    """
    inputs = first_batch(graph, samples)
    several = _sites_of_several_bounds(graph.module)
    if form == "min" or not several:
        return _UNFOLDED, {}
    choice = replace(_FOLDED, name=form, only=several)
    folded = fold_for(graph, choice)
    sites = {site for site, outcome in folded.sites.items() if outcome.folded}
    if form == "folded" or not sites:
        return choice, {}
    before, after = _Rounded(graph.module, bits), _Rounded(folded.graph.module, bits)
    with torch.no_grad():
        before.run(*inputs)
        after.run(*inputs)
    losses: dict[str, Loss] = {}
    for site, layers in _layers_behind(graph.module).items():
        for layer in layers if site in sites else ():
            loss = Loss(layer, before.decibels(layer), after.decibels(layer, before.power[layer]))
            if loss.before - loss.after > TOLERATED and (site not in losses or loss.after < losses[site].after):
                losses[site] = loss
    return replace(choice, only=several - losses.keys()), losses


class _Rounded(fx.Interpreter):
    """Runs every layer a second time with its input and weights rounded, and keeps signal and noise by channel."""

    def __init__(self, module: fx.GraphModule, bits: int) -> None:
        super().__init__(module)
        self.bits = bits
        self.power: dict[str, Tensor] = {}
        self.noise: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        weight = constant(self.module, n.args[1]) if n.target in _LAYERS else None  # type: ignore[arg-type]
        if weight is None:
            return result
        arguments, keywords = self.fetch_args_kwargs_from_env(n)
        integers, scale = quantise_weight(weight.numpy(), 0, self.bits)
        stored = torch.from_numpy(integers * scale.reshape(-1, *[1] * (weight.ndim - 1)))
        target: Callable[..., Tensor] = n.target  # type: ignore[assignment]
        found = target(_rounded(arguments[0]), stored, *arguments[2:], **keywords)
        axis = result.ndim - 1 if n.target is _aten.linear.default else 1
        others = [index for index in range(result.ndim) if index != axis]
        self.power[n.name] = result.double().pow(2).mean(others)
        self.noise[n.name] = (found - result).double().pow(2).mean(others)
        return result

    def decibels(self, layer: str, weights: Tensor | None = None) -> float:
        """Signal to noise of a layer; its channels, which folding divides, count by ``weights``."""
        power, noise = self.power[layer], self.noise[layer]
        live = power > 0
        counted = (power if weights is None else weights)[live]
        ratio = (noise[live] / power[live] * counted).sum() / counted.sum()
        return -10 * math.log10(max(float(ratio), 1e-30)) if bool(live.any()) else math.inf


def _rounded(values: Tensor) -> Tensor:
    quantizer = for_range(float(values.min()), float(values.max()))
    zero_point = int(quantizer.zero_point)
    integers = (values / torch.from_numpy(quantizer.scale)).round().clamp(-zero_point, LEVELS - zero_point)
    return integers * torch.from_numpy(np.asarray(quantizer.scale))


def _sites_of_several_bounds(module: fx.GraphModule) -> frozenset[str]:
    """A site with one bound needs no folding: its scale is the bound as it is."""
    found = set()
    for node in module.graph.nodes:
        bound = constant(module, node.args[1]) if node.target is clamp_bound else None
        if bound is not None and bound.numel() > 1:
            found.add(node.meta["site"])
    return frozenset(found)


def _layers_behind(module: fx.GraphModule) -> Mapping[str, set[str]]:
    """By site, the layers that read its activation, whatever moves or adds it on the way."""
    found: dict[str, set[str]] = {}
    for node in module.graph.nodes:
        if node.target is not clamp_bound:
            continue
        layers: set[str] = set()
        queue, seen = [node], {node}
        while queue:
            for user in queue.pop().users:
                if user.target in _LAYERS:
                    layers.add(user.name)
                elif user.target is not clamp_bound and user not in seen:
                    seen.add(user)
                    queue.append(user)
        found[node.meta["site"]] = layers
    return found
