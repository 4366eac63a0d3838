"""Histograms of activations, site by site, clean against triggered, before and after the clamp."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation.batches import as_tensor
from unit_fast.evaluation.classifier import inference, module_device
from unit_fast.evaluation.triggers import stamped

Exposed = Callable[[Tensor], tuple[Any, Mapping[str, Tensor]]]

SERIES = ("clean", "triggered", "clean_after", "triggered_after")

# histc counts in float32, which is exact up to 2^24.
_CHUNK = 1 << 22
# Bins counted for each bin shown: a range that has doubled still shows at least half as many as asked for.
_FINER = 8


@dataclass(frozen=True)
class SiteHistogram:
    """The activations of one site, in counts per bin; all series share the edges, None where not measured."""

    name: str
    edges: tuple[float, ...]
    """Ends of the bins, one more than bins, rising evenly."""
    clean: tuple[int, ...]
    triggered: tuple[int, ...] | None = None
    clean_after: tuple[int, ...] | None = None
    triggered_after: tuple[int, ...] | None = None
    """The same, after the clamp."""
    bounds: tuple[float, float, float, float, float] | None = None
    """Of the site's bounds: minimum, 5 %, median, 95 %, maximum."""
    clean_clamped: float | None = None
    """Share of the clean activations above their bound, in [0, 1]."""
    triggered_clamped: float | None = None

    def __post_init__(self) -> None:
        for series in SERIES:
            counts = getattr(self, series)
            if counts is not None and len(counts) != len(self.edges) - 1:
                raise DataError(
                    f"site {self.name}: {len(self.edges)} edges need {len(self.edges) - 1} counts, "
                    f"found {len(counts)} ({series})"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)


def collect_histograms(
    run: Exposed,
    loader: Iterable[Any],
    *,
    bounds: Mapping[str, Tensor] | None = None,
    after: Exposed | None = None,
    trigger: Callable[[Tensor], Tensor] | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
    max_batches: int | None = None,
    bins: int = 64,
) -> tuple[SiteHistogram, ...]:
    """Count activations over a loader, in memory that does not grow with it.

    Args:
        run: returns ``(output, {site: activation})``, activations (N, …), of the model without clamps.
        loader: yields ``(x, y)`` or x.
        bounds: the bounds of each site, broadcastable to one sample's activation; sites without one are not clamped.
        after: the same as ``run``, of the clamped model. None, with bounds: each site's activations clamped by
            themselves, that is without what the clamps before it change.
        trigger: makes the triggered batch of a clean one.
        preprocess: applied after the trigger.
        device: where batches are moved. None: to the parameters of ``run``.
        max_batches: stop after so many.
        bins: at most so many are returned; the range is found on the way.

    Returns:
        One histogram a site, in the order in which the first call names them.

    Raises:
        DataError: an empty loader, no sites, NaN or infinite activations, a bound that doesn't fit its site.
    """
    where = torch.device(device) if device is not None else module_device(run)
    sites: dict[str, _SiteCounts] = {}
    with inference([run, after]):
        for number, content in enumerate(loader):
            if max_batches is not None and number >= max_batches:
                break
            inputs = as_tensor(content[0] if isinstance(content, tuple | list) else content, f"batch {number}: x")
            inputs = inputs if where is None else inputs.to(where)
            batches = {"clean": inputs} if trigger is None else {"clean": inputs, "triggered": stamped(trigger, inputs)}
            for series, batch in batches.items():
                ready = batch if preprocess is None else preprocess(batch)
                activations = _activations(run, ready)
                clamped = activations if after is None else _activations(after, ready)
                for name, activation in activations.items():
                    site = sites.setdefault(name, _SiteCounts(name, (bounds or {}).get(name), bins * _FINER))
                    site.add(series, activation)
                    if bounds is not None or after is not None:
                        site.add_after(series, clamped.get(name, activation))
    if not sites:
        raise DataError("no activations: the loader is empty, or the model exposes no sites")
    return tuple(site.finish(bins) for site in sites.values())


def _activations(run: Exposed, batch: Tensor) -> Mapping[str, Tensor]:
    result = run(batch)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise DataError(f"expected a function returning (output, {{site: activation}}), found {type(result).__name__}")
    return result[1]


class _SiteCounts:
    """Counts over a range that doubles, joining bins in pairs, when values fall outside it."""

    def __init__(self, name: str, bound: Tensor | None, bins: int) -> None:
        self.name = name
        self.bound = bound
        self.bins = bins
        self.low = self.high = math.nan
        self.counts: dict[str, Tensor] = {}
        self.clamped: dict[str, int] = {}
        self.seen: dict[str, int] = {}

    def add(self, series: str, activation: Tensor) -> None:
        """Count activations of the model without clamps, and how many are above their bound."""
        self._count(series, activation)
        if self.bound is not None and activation.numel():
            bound = self._fitting(activation)
            self.clamped[series] = self.clamped.get(series, 0) + int((activation > bound).sum())
            self.seen[series] = self.seen.get(series, 0) + activation.numel()

    def add_after(self, series: str, activation: Tensor) -> None:
        """Count activations as the next layer gets them."""
        clamped = activation if self.bound is None else torch.minimum(activation, self._fitting(activation))
        self._count(f"{series}_after", clamped)

    def finish(self, bins: int) -> SiteHistogram:
        """Cut the range to what was seen and join bins until at most ``bins`` are left."""
        if not self.counts:
            raise DataError(f"site {self.name}: the loader gave no samples")
        used = torch.stack(list(self.counts.values())).sum(0).nonzero().flatten()
        first, last = int(used[0]), int(used[-1]) + 1
        if self.low == 0:
            first = 0  # what a ReLU leaves starts at 0, with or without an activation in the first bin
        join = math.ceil((last - first) / bins)
        shown = math.ceil((last - first) / join)
        width = (self.high - self.low) / self.bins
        edges = tuple(self.low + width * (first + join * place) for place in range(shown + 1))
        padded = {
            series: torch.cat((counts[first:], torch.zeros(join, dtype=torch.int64)))[: shown * join]
            for series, counts in self.counts.items()
        }
        series = {name: tuple(counts.view(shown, join).sum(1).tolist()) for name, counts in padded.items()}
        return SiteHistogram(
            name=self.name,
            edges=edges,
            bounds=None if self.bound is None else _quantiles(self.bound),
            clean_clamped=self._share("clean"),
            triggered_clamped=self._share("triggered"),
            **series,
        )

    def _count(self, series: str, activation: Tensor) -> None:
        if activation.numel() == 0:
            return
        values = activation.detach().float().flatten()
        low, high = (float(end) for end in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(f"site {self.name}: the activations have NaN or infinite values; is the data finite?")
        self._cover(low, high)
        counts = self.counts.setdefault(series, torch.zeros(self.bins, dtype=torch.int64))
        for chunk in torch.split(values, _CHUNK):
            counts += torch.histc(chunk, self.bins, self.low, self.high).to("cpu", torch.int64)

    def _cover(self, low: float, high: float) -> None:
        if math.isnan(self.low):
            self.low = min(low, 0.0) if low >= 0 else low
            self.high = high if high > self.low else self.low + 1
        while high > self.high or low < self.low:
            width = self.high - self.low
            upwards = high > self.high
            self.low, self.high = (self.low, self.high + width) if upwards else (self.low - width, self.high)
            empty = torch.zeros(self.bins // 2, dtype=torch.int64)
            for series, counts in self.counts.items():
                pairs = counts.view(-1, 2).sum(1)
                self.counts[series] = torch.cat((pairs, empty) if upwards else (empty, pairs))

    def _fitting(self, activation: Tensor) -> Tensor:
        assert self.bound is not None
        bound = self.bound.to(activation.device, activation.dtype)
        sample = activation.shape[1:]
        trailing = zip(reversed(bound.shape), reversed(sample), strict=False)
        if bound.ndim > len(sample) or any(mine not in {1, theirs} for mine, theirs in trailing):
            raise DataError(
                f"site {self.name}: bounds of shape {tuple(bound.shape)} don't fit activations of shape "
                f"{tuple(sample)} a sample; are they from another model or image size?"
            )
        return bound

    def _share(self, series: str) -> float | None:
        return self.clamped[series] / self.seen[series] if series in self.seen else None


def _quantiles(bound: Tensor) -> tuple[float, float, float, float, float]:
    ordered = bound.detach().to("cpu").float().flatten().sort().values
    places = [round(share * (len(ordered) - 1)) for share in (0.0, 0.05, 0.5, 0.95, 1.0)]
    lowest, low, median, high, highest = (float(ordered[place]) for place in places)
    return lowest, low, median, high, highest
