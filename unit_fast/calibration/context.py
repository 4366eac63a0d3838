"""What a calibration method is given, and what it must be."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from unit_fast.calibration.finite import check_activations
from unit_fast.calibration.granularity import Granularity
from unit_fast.calibration.inputs import call_model
from unit_fast.calibration.progress import Progress, silent
from unit_fast.calibration.samples import SampleStore
from unit_fast.sites import Site, expose_sites


@dataclass(frozen=True)
class CalibrationContext:
    """Everything a :class:`Method` may use. Nothing in it belongs to the user's model.

    Attributes:
        graph: the plain captured graph, on ``device``, parameters without ``requires_grad``; not to be modified.
        sites: where bounds are wanted.
        samples: the calibration set; its batches come on ``device`` in the model's floating dtype, with labels.
        fit_indices: (F,) int64 on the CPU, ascending: the samples to fit on.
        validation_indices: (V,) int64 on the CPU, ascending: the samples to judge by.
        granularity: "neuron", "channel" or "tensor".
        seed: of every random choice; :meth:`generator` makes generators from it.
        device: where the graph and the batches are.
        logits: takes the graph's output to the logits (N, classes).
        batch_size: samples a mini-batch where the method has no opinion.
        progress: to be called after each step.
        checkpoint: the file to save to and resume from; None for neither.
        notes: a method writes here what the bounds' metadata shall say beyond its settings (JSON values).
    """

    graph: fx.GraphModule
    sites: tuple[Site, ...]
    samples: SampleStore
    fit_indices: Tensor
    validation_indices: Tensor
    granularity: Granularity
    seed: int
    device: torch.device
    logits: Callable[[Any], Tensor]
    batch_size: int
    progress: Progress = silent
    checkpoint: Path | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def generator(self) -> torch.Generator:
        """A new CPU generator seeded with ``seed``: the same draws whatever was drawn elsewhere."""
        return torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def activations(self, indices: Tensor) -> Iterator[dict[str, Tensor]]:
        """The activations at the sites, one dict {site name: (N, *site.shape)} a mini-batch of ``indices``.

        Raises:
            DataError: an activation is NaN or infinite; names the site, how many and the sample.
        """
        exposed = expose_sites(self.graph, self.sites)
        for start in range(0, len(indices), self.batch_size):
            rows = indices[start : start + self.batch_size]
            _, activations = call_model(exposed, self.samples.read(rows).x)
            check_activations(activations, rows, self.samples)
            yield activations

    @torch.no_grad()
    def accuracy(self, model: Callable[..., Any], indices: Tensor) -> float:
        """Share of ``indices`` that ``model`` (called like the graph) gives their label, in [0, 1]."""
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch in self.samples.batches(indices, self.batch_size):
            correct += (self.logits(call_model(model, batch.x)).argmax(1) == batch.y).sum()
        return float(correct) / len(indices)


class Method(ABC):
    """A way to find bounds: subclass as a frozen dataclass whose fields are the settings, checked when made."""

    @property
    def name(self) -> str:
        """As the metadata and the command line spell it."""
        return type(self).__name__.lower()

    @property
    def shuffles_split(self) -> bool:
        """Whether fit and validation are drawn by the seed; False takes the first samples of each class to fit."""
        return True

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}

    @abstractmethod
    def fit(self, context: CalibrationContext) -> dict[str, Tensor]:
        """Find a bound tensor for every site, shaped by ``granularity.unit_shape(site, context.granularity)``."""
