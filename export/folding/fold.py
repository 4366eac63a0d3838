"""Sanitised graph ⇒ the same graph over activations divided by their bounds, and by site what was done."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, fx

from unit_fast.export.flat import FlatGraph
from unit_fast.export.folding.plan import Plan, label
from unit_fast.export.folding.propagate import propagate
from unit_fast.export.folding.rewrite import apply_plan, overflowing_sites
from unit_fast.export.folding.scale import sample_shape
from unit_fast.fusion.rewrite import copy_graph
from unit_fast.sites import clamp_bound


@dataclass(frozen=True)
class Folding:
    """Settings of :func:`fold`.

    Attributes:
        limit: the bound that every folded site gets, above 0.
        smallest: bounds below it, relative to ``limit``, cannot be divided by: beside larger ones they count as 0.
        largest: a site with a bound above it, relative to ``limit``, is not folded.
        rescale: whether a residual sum may be multiplied so that the site behind it folds; without, such a site keeps
            its own bounds (divided by the scale that the sum has).
    """

    limit: float = 1.0
    smallest: float = 1e-30
    largest: float = 1e30
    rescale: bool = True


@dataclass(frozen=True)
class SiteFold:
    """What folding did to one site.

    Attributes:
        site: its name.
        folded: whether its bound is now ``Folding.limit`` everywhere.
        reason: how, or why not.
        scale: the site's activation is ``scale`` × what the folded graph has there. Broadcasts to one sample, float64,
            above 0; None stands for 1. A site that is not folded has one where its residual stream has.
        zero: whether a folded bound is 0, so that what is clamped has to stay 0.
    """

    site: str
    folded: bool
    reason: str
    scale: Tensor | None
    zero: bool = False


@dataclass(frozen=True)
class FoldResult:
    """A folded graph, and by site, in the order in which they run, what was done.

    ``graph`` takes and returns exactly what the graph before took and returned; its ``clamp_bound`` nodes carry their
    site in ``meta["site"]`` as before, and the bounds of folded sites are scalars equal to ``Folding.limit``.
    """

    graph: FlatGraph
    sites: Mapping[str, SiteFold]

    @property
    def scales(self) -> dict[str, Tensor]:
        """The scale of every site that has one."""
        return {site: fold.scale for site, fold in self.sites.items() if fold.scale is not None}


def fold(graph: FlatGraph, settings: Folding | None = None, *, only: Collection[str] | None = None) -> FoldResult:
    """Fold the bounds of as many sites as is legal and worth it into the layers around them.

    Multiplications that cannot be taken up by a layer become nodes; a site that would need as much of that as its
    own clamp costs is left alone. The arithmetic is done in float64 and rounded once.

    Args:
        graph: a sanitised graph in float32, left as it is.
        settings: :class:`Folding`'s defaults when omitted.
        only: names of the sites that may be folded; all when omitted.

    Raises:
        ExportError: a bound is NaN or −inf.
    """
    settings = settings or Folding()
    refused: dict[str, str] = {}
    if only is not None:
        names = (node.meta["site"] for node in graph.module.graph.nodes if node.target is clamp_bound)
        refused = dict.fromkeys((name for name in names if name not in only), "not asked for")
    while True:
        module = copy_graph(graph.module)
        plan = propagate(module, settings.limit, settings.smallest, settings.largest, settings.rescale, refused)
        # Every round refuses at least one site more, so this ends.
        worse = _not_worth_it(plan) | dict.fromkeys(overflowing_sites(module, plan), "its weights would overflow")
        if not worse:
            break
        refused |= worse
    apply_plan(module, plan)
    sites = {
        site: SiteFold(site, outcome.folded, outcome.reason, outcome.scale, outcome.zero)
        for site, outcome in plan.sites.items()
    }
    return FoldResult(replace(graph, module=module), sites)


def _not_worth_it(plan: Plan) -> dict[str, str]:
    """Sites whose scale must be multiplied back on as many values as their clamp has."""
    restored: defaultdict[str, float] = defaultdict(float)
    readers: defaultdict[str, list[str]] = defaultdict(list)
    for multiplication in plan.multiplications:
        if multiplication.restores:
            for site in multiplication.sites:
                restored[site] += _size(multiplication.value) / len(multiplication.sites)
                readers[site] += [label(reader) for reader in multiplication.readers]
    return {
        site: f"its scale cannot be taken up by {' and '.join(dict.fromkeys(readers[site]))}, and to multiply it back "
        "costs as much as the clamp"
        for site, count in restored.items()
        if count >= plan.sites[site].size
    }


def _size(node: fx.Node) -> int:
    count = 1
    for size in sample_shape(node):
        count *= size
    return count
