"""Bounds: a model's learned upper limits, and their file.

The file is safetensors. Its tensors are ``bound/<site>`` and what is known of the clean activations; its metadata hold
the format version, the model's fingerprint, the sites, the method with its settings, accuracies, and versions.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unit_fast.errors import BackendUnavailableError, BoundsMismatchError, UnitFastWarning
from unit_fast.files import atomic_write
from unit_fast.fingerprint import Fingerprint, tensor_sha256
from unit_fast.sites import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Granularity = Literal["neuron", "channel", "tensor"]

FORMAT_VERSION = 1
_HEADER = "unit_fast"


@dataclass(frozen=True)
class CleanActivations:
    """What calibration saw at one site.

    Attributes:
        counts: histogram of the activations over the clean samples, (bins,).
        edges: of the bins, (bins + 1,).
        maximum: the largest clean activation of each unit, in the bound's shape.
    """

    counts: Tensor
    edges: Tensor
    maximum: Tensor


@dataclass(frozen=True)
class CleanReadings:
    """What the clamps took away from clean samples that the bounds were not fitted on: what is usual.

    Attributes:
        counts: how many activations of each site lay above their bound, (samples, sites), int64.
        excess: how far the furthest of each site lay above its bound, (samples, sites), float32; 0 where none did.
    """

    counts: Tensor
    excess: Tensor


@dataclass(frozen=True, repr=False)
class Bounds(Mapping[str, Tensor]):
    """The bounds of one model: site name -> float32 tensor that broadcasts to one sample of that site.

    Attributes:
        tensors: the bounds, in the order of the sites.
        sites: the sites they are for.
        granularity: "neuron", "channel" or "tensor".
        fingerprint: of the model they were fitted on; they go onto no other.
        metadata: method, settings, accuracies, sample counts and versions; JSON types only.
        clean: what calibration saw at each site, for summaries and plots; may be empty.
        readings: what the clamps took away from clean samples, for thresholds; None in files of earlier versions.
    """

    tensors: dict[str, Tensor]
    sites: tuple[Site, ...]
    granularity: Granularity
    fingerprint: Fingerprint
    metadata: dict[str, Any] = field(default_factory=dict)
    clean: dict[str, CleanActivations] = field(default_factory=dict)
    readings: CleanReadings | None = None

    def __post_init__(self) -> None:
        if self.granularity not in get_args(Granularity):
            raise BoundsMismatchError(
                f"granularity is {self.granularity!r}; expected one of {', '.join(get_args(Granularity))}"
            )
        if list(self.tensors) != [site.name for site in self.sites]:
            raise BoundsMismatchError("the bounds and the sites have other names; expected a bound for every site")
        for site in self.sites:
            expected = bound_shape(site, self.granularity)
            found: object = self.tensors[site.name]
            if not isinstance(found, Tensor) or not found.is_floating_point():
                kind = f"tensor of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
                raise BoundsMismatchError(f"the bound of site {site.name} is a {kind}; expected a tensor of float32")
            if tuple(found.shape) != expected:
                raise BoundsMismatchError(
                    f"the bound of site {site.name} has the shape {tuple(found.shape)}; a bound per "
                    f"{self.granularity} of activations {site.shape} has the shape {expected}"
                )
            if torch.isnan(found).any():
                raise BoundsMismatchError(
                    f"the bound of site {site.name} holds NaN, which would switch its clamp off; calibrate again"
                )
            if torch.isneginf(found).any():
                raise BoundsMismatchError(
                    f"the bound of site {site.name} holds -inf, which leaves no activation; calibrate again"
                )
        if self.readings is not None:
            for name, tensor in (("counts", self.readings.counts), ("excess", self.readings.excess)):
                if tensor.ndim != 2 or tensor.shape[1] != len(self.sites):
                    raise BoundsMismatchError(
                        f"the clean {name} have the shape {tuple(tensor.shape)}; expected (samples, {len(self.sites)})"
                    )

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        count = sum(tensor.numel() for tensor in self.tensors.values())
        return f"<Bounds: {count:,} at {len(self)} sites, per {self.granularity}>"

    @property
    def sha256(self) -> str:
        """Hash over the bounds, their names and the model they belong to."""
        digest = hashlib.sha256(f"{self.granularity} {self.fingerprint.sha256} ".encode())
        for name, tensor in self.tensors.items():
            digest.update(f"{name}={tensor_sha256(tensor)};".encode())
        return digest.hexdigest()

    def require_model(self, fingerprint: Fingerprint, sites: Sequence[Site]) -> None:
        """Raise unless a model of this fingerprint, with these sites, is the one the bounds were fitted on.

        Bounds per channel and per tensor hold at any image size; bounds per neuron only at the one they were fitted at.

        Raises:
            BoundsMismatchError: lists the differences.

        Warns:
            UnitFastWarning: the model has sites that nobody left out, and that the bounds have nothing for: an earlier
                version did not find them.
        """
        differences = self.fingerprint.differences(fingerprint)
        found = {site.name: site for site in sites}
        for site in self.sites:
            if site.name not in found:
                differences.append(f"site {site.name} is missing")
                continue
            shape = bound_shape(found[site.name], self.granularity)
            if shape != tuple(self.tensors[site.name].shape):
                differences.append(
                    f"site {site.name} has activations {found[site.name].shape}, its bounds per {self.granularity} "
                    f"were fitted for {site.shape}"
                )
        if differences:
            shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
            raise BoundsMismatchError(
                f"these bounds were fitted on another model: {shown} (bounds made with torch "
                f"{self.metadata.get('versions', {}).get('torch', 'unknown')}, this is {torch.__version__}); "
                "calibrate this model, with inputs of the size it is served"
            )
        left_out = self.metadata.get("without_bounds", ())
        unbounded = [name for name in found if name not in self.tensors and name not in left_out]
        if unbounded and "method" in self.metadata:  # else they were made by hand, for whatever sites
            shown = ", ".join(unbounded[:5]) + (", …" if len(unbounded) > 5 else "")
            warnings.warn(
                f"nothing bounds {len(unbounded)} of the model's {len(found)} activations ({shown}): the version of "
                "unit_fast that made these bounds did not find them; calibrate again",
                UnitFastWarning,
                stacklevel=3,
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the bounds file, whole or not at all; returns its path.

        Raises:
            UnitFastError: the place cannot be written.
        """
        tensors = {f"bound/{name}": tensor for name, tensor in self.tensors.items()}
        for name, clean in self.clean.items():
            tensors |= {f"{part}/{name}": getattr(clean, part) for part in ("counts", "edges", "maximum")}
        if self.readings is not None:
            tensors |= {"clean_counts": self.readings.counts, "clean_excess": self.readings.excess}
        header: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "granularity": self.granularity,
            "fingerprint": asdict(self.fingerprint),
            "sites": [asdict(site) for site in self.sites],
            "metadata": self.metadata,
        }
        header["checksum"] = _checksum(header, tensors)
        # One entry: safetensors writes several in no fixed order, and the same bounds shall give the same bytes.
        text = {_HEADER: json.dumps(header, sort_keys=True, allow_nan=False)}
        content = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, metadata=text)
        return atomic_write(path, lambda temporary: temporary.write_bytes(content))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Bounds":
        """Read a bounds file.

        Raises:
            BoundsMismatchError: the file is missing, truncated, tampered with, or of a newer format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
                stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        except (FileNotFoundError, TypeError) as error:
            raise BoundsMismatchError(f"there is no bounds file {path}") from error
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise BoundsMismatchError(f"{path} is no bounds file, or is truncated: {error}; calibrate again") from error
        version = header.get("format_version") if isinstance(header, dict) else None
        if type(version) is not int or version < 1:
            raise BoundsMismatchError(f"{path} is a safetensors file but holds no bounds of unit_fast")
        if version > FORMAT_VERSION:
            raise BoundsMismatchError(
                f"{path} has format version {version}, this unit_fast reads up to {FORMAT_VERSION}; upgrade unit_fast"
            )
        expected = header.pop("checksum", None)
        found = _checksum(header, stored)
        if found != expected:
            raise BoundsMismatchError(
                f"{path} was changed after it was written: its checksum is {found[:12]}…, it says "
                f"{str(expected)[:12]}…; calibrate again or fetch the file again"
            )
        try:
            return cls._from_parts(header, stored)
        except (KeyError, TypeError, AttributeError) as error:
            raise BoundsMismatchError(f"{path} is damaged: {error!r} is missing or wrong; calibrate again") from error

    @classmethod
    def _from_parts(cls, header: dict[str, Any], stored: dict[str, Tensor]) -> "Bounds":
        sites = tuple(Site(**{**entry, "shape": tuple(entry["shape"])}) for entry in header["sites"])
        clean = {
            site.name: CleanActivations(*(stored[f"{part}/{site.name}"] for part in ("counts", "edges", "maximum")))
            for site in sites
            if f"counts/{site.name}" in stored
        }
        readings = CleanReadings(stored["clean_counts"], stored["clean_excess"]) if "clean_counts" in stored else None
        return cls(
            tensors={site.name: stored[f"bound/{site.name}"] for site in sites},
            sites=sites,
            granularity=header["granularity"],
            fingerprint=Fingerprint(**header["fingerprint"]),
            metadata=header["metadata"],
            clean=clean,
            readings=readings,
        )

    def tightness(self, name: str) -> float:
        """Median over a site's units of bound / largest clean activation: below 1 where the bound cuts into clean data.

        NaN where nothing is known of the clean activations, or none of them is positive.
        """
        if name not in self.clean:
            return float("nan")
        maximum = self.clean[name].maximum
        ratios = (self.tensors[name] / maximum)[maximum > 0]
        return float(ratios.median()) if ratios.numel() else float("nan")

    def summary(self) -> str:
        """A table as text: per site its shape, the median bound, and how far the bound lies below the clean maximum."""
        rows = [("site", "activation", "shape", "median bound", "clean maximum", "bound / maximum")]
        for site in self.sites:
            clean = self.clean.get(site.name)
            maximum = f"{float(clean.maximum.median()):.4g}" if clean else "–"
            ratio = self.tightness(site.name)
            rows.append(
                (
                    site.name,
                    site.activation,
                    "×".join(map(str, site.shape)),
                    f"{float(self.tensors[site.name].median()):.4g}",
                    maximum,
                    "–" if ratio != ratio else f"{ratio:.2f}",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        count = sum(tensor.numel() for tensor in self.tensors.values())
        title = f"{count:,} bounds per {self.granularity} at {len(self.sites)} sites"
        return "\n".join([title, lines[0], "  ".join("─" * width for width in widths), *lines[1:]])

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw, per site, the histogram of the clean activations with the bounds on it.

        Args:
            path: where to save the picture (format by its ending); not saved when omitted.

        Raises:
            BackendUnavailableError: matplotlib is missing.
            BoundsMismatchError: the bounds hold no histograms.
        """
        try:
            from unit_fast.plotting import plot_bounds
        except ImportError as error:
            raise BackendUnavailableError(
                f"plots need matplotlib ({error}); install it with: pip install 'unit_fast[vision]'"
            ) from error
        figure = plot_bounds(self)
        if path is not None:
            suffix = Path(path).suffix.lstrip(".") or "png"
            atomic_write(path, lambda temporary: figure.savefig(temporary, format=suffix))
        return figure


def require_bounds(bounds: object) -> None:
    """Raise BoundsMismatchError, saying how to get some, unless ``bounds`` are :class:`Bounds`."""
    if not isinstance(bounds, Bounds):
        raise BoundsMismatchError(
            f"bounds is a {type(bounds).__name__}; expected unit_fast.Bounds, from unit_fast.calibrate(...) or "
            "unit_fast.Bounds.load(path)"
        )


def _checksum(header: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over everything in the file: each value of the header and each tensor."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}={tensor_sha256(tensors[name])};".encode())
    return digest.hexdigest()


def bound_shape(site: Site, granularity: Granularity) -> tuple[int, ...]:
    """Shape of a bound at ``site``: (C, H, W) per neuron, (C, 1, 1) per channel, () per tensor."""
    if granularity == "neuron":
        return site.shape
    if granularity == "tensor":
        return ()
    axis = site.channel_axis - 1 if site.channel_axis > 0 else len(site.shape) + site.channel_axis
    return tuple(size if position == axis else 1 for position, size in enumerate(site.shape))
