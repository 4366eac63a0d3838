"""Which sites a choice of forms wants folded."""

from torch import fx

from unit_fast.export.flat import FlatGraph
from unit_fast.export.folding.fold import Folding, FoldResult, fold
from unit_fast.export.folding.movement import is_sum
from unit_fast.export.forms.choice import Choice
from unit_fast.sites import clamp_bound


def fold_for(graph: FlatGraph, choice: Choice) -> FoldResult:
    """Fold what ``choice`` wants folded; ``graph`` itself, and no site, where that is nothing.

    Raises:
        ExportError: a bound is NaN or −inf.
    """
    settings = Folding(choice.limit, *choice.divisors, choice.rescale)
    if choice.fold == "none":
        return FoldResult(graph, {})
    if choice.fold == "all":
        return fold(graph, settings, only=choice.only)
    behind = {
        node.meta["site"] for node in graph.module.graph.nodes if node.target is clamp_bound and _behind_sum(node)
    }
    return fold(graph, settings, only=behind) if behind else FoldResult(graph, {})


def _behind_sum(clamp: fx.Node) -> bool:
    activation = clamp.args[0]
    value = activation.args[0] if isinstance(activation, fx.Node) and activation.args else None
    return isinstance(value, fx.Node) and is_sum(value)
