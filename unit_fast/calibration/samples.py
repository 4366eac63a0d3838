"""The calibration set, read once and kept on disk, so that memory does not grow with it."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from unit_fast.calibration.inputs import Inputs, input_leaves, ordered_like, rebuild_inputs
from unit_fast.calibration.loader_batches import check_finite, read_batch
from unit_fast.calibration.split import Split, split_by_class
from unit_fast.errors import DataError


class Batch(NamedTuple):
    """Samples in the order of the indices they were asked by."""

    x: Inputs
    """Every tensor (N, …), on the store's device."""
    y: Tensor
    """(N,) int64 class indices on the store's device; all −1 while the store has no labels."""


@dataclass(frozen=True)
class _Leaf:
    """One input tensor of a sample inside its record."""

    name: str
    shape: tuple[int, ...]  # without the batch
    dtype: torch.dtype
    size: int  # bytes a sample


class SampleStore:
    """A calibration set in an anonymous temporary file, with random access.

    The loader is iterated once; one-shot generators and shuffling loaders are fine. Only the labels (8 bytes a sample)
    and the batch that is in use are in memory. The file has no name, so nothing is left behind whatever happens; it
    lies where ``tempfile`` puts files (``TMPDIR`` moves it: a folder held in memory would defeat the purpose).

    Args:
        loader: an iterable of batches ``(x, y)``, ``(x, None)`` or ``x`` alone. ``x`` is a tensor, or a tuple or dict
            (several inputs: a tuple only as ``((a, b), y)`` or ``((a, b), None)``) of tensors or of further tuples and
            dicts, of any dtype, samples along the first dimension. ``y`` are class indices (N,). NumPy arrays are taken
            as well.
        device: where batches are given out.
        float_dtype: the dtype floating inputs are given out in; None leaves them as they came.
        example: what the model is called with; dicts are given out in the order of its keys, else in the first batch's.

    Raises:
        DataError: the loader is empty; a batch is no such thing; inputs hold NaN or infinity; shapes or dtypes differ
            between batches; labels are no class indices, or missing in some batches; the disk is full.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device | str = "cpu",
        float_dtype: torch.dtype | None = None,
        example: Any = None,
    ) -> None:
        self.device = torch.device(device)
        self._float_dtype = float_dtype
        self._example = example
        self._leaves: tuple[_Leaf, ...] = ()
        self._like: Inputs | None = None
        self._starts: list[int] = []  # first sample of each batch of the loader, to name it in messages
        self._count = 0
        try:
            self._file = tempfile.TemporaryFile(prefix="unit_fast-", buffering=0)  # noqa: SIM115 - close() closes it
        except OSError as error:
            raise DataError(_disk_message(error)) from error
        try:
            self._labels = self._spool(loader)
        except BaseException:
            self._file.close()
            raise
        self.labels_given = self._labels is not None

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the disk space back. Reading afterwards raises ValueError."""
        self._file.close()

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every input without the batch, by its readable name."""
        return {leaf.name: leaf.shape for leaf in self._leaves}

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64 on the CPU; None while there are none."""
        return self._labels

    def set_labels(self, labels: Tensor) -> None:
        """Use ``labels`` (N,), such as the model's own predictions, as the class of every sample."""
        if labels.shape != (self._count,) or labels.is_floating_point():
            raise DataError(
                f"labels must be {self._count} class indices, one a sample; got {labels.dtype} {tuple(labels.shape)}"
            )
        self._labels = labels.to("cpu", torch.int64)

    def check_labels(self, num_classes: int) -> None:
        """Raise DataError, naming batch and sample, for a label that is not below ``num_classes``."""
        if self._labels is None:
            return
        beyond = (self._labels >= num_classes).nonzero()
        if len(beyond):
            index = int(beyond[0])
            raise DataError(
                f"{self.where(index)}: label {int(self._labels[index])} is out of range, the model has {num_classes} "
                f"classes (0 to {num_classes - 1}); {len(beyond)} such labels in all; check how the data counts classes"
            )

    def where(self, index: int) -> str:
        """Name a sample as its loader gave it: ``batch 3, sample 17``, both counted from 0."""
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"batch {batch}, sample {index - self._starts[batch]}"

    def split(self, fraction: float = 0.8, seed: int = 0, *, shuffle: bool = True) -> Split:
        """Split by class into fit and validation; see :func:`unit_fast.calibration.split.split_by_class`."""
        if self._labels is None:
            raise DataError("the calibration set has no labels; set them (set_labels) before splitting")
        return split_by_class(self._labels, fraction, seed, shuffle=shuffle, spare_single=not self.labels_given)

    def read(self, indices: Tensor) -> Batch:
        """The samples at ``indices`` (N,), in that order, repeats allowed. Raises IndexError beyond the set."""
        rows = indices.to("cpu", torch.int64)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self._count):
            raise IndexError(
                f"sample indices must lie in 0 … {self._count - 1}; got {int(rows.min())} … {int(rows.max())}"
            )
        records = self._read_records(rows.numpy())
        y = torch.full((len(rows),), -1) if self._labels is None else self._labels[rows]
        return Batch(self._unpack(records), y.to(self.device))

    def batches(self, indices: Tensor | None = None, batch_size: int = 128) -> Iterator[Batch]:
        """Go through ``indices`` (all samples if None) in order, ``batch_size`` at a time, the last batch smaller."""
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1; got {batch_size}")
        chosen = torch.arange(self._count) if indices is None else indices
        for start in range(0, len(chosen), batch_size):
            yield self.read(chosen[start : start + batch_size])

    def shuffled_batches(self, indices: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Like :meth:`batches`, in an order drawn from the CPU ``generator``: one draw an epoch."""
        order = torch.randperm(len(indices), generator=generator)
        yield from self.batches(indices[order], batch_size)

    def _spool(self, loader: Iterable[Any]) -> Tensor | None:
        labels: list[Tensor | None] = []
        for number, item in enumerate(loader):
            x, y = read_batch(item, number)
            x = ordered_like(x, self._example)
            leaves = input_leaves(x)
            self._check_leaves(x, leaves, number)
            check_finite(leaves, number)
            labels.append(y)
            if (y is None) != (labels[0] is None):
                raise DataError(
                    f"batch {number}: {'has no labels' if y is None else 'has labels'}, unlike batch 0; give labels "
                    "with every batch or with none"
                )
            self._starts.append(self._count)
            self._count += len(next(iter(leaves.values())))
            self._write(leaves)
        if not self._count:
            raise DataError("the calibration loader is empty: it gave no sample; give batches of (x, y)")
        given = [y for y in labels if y is not None]
        return torch.cat(given) if given else None

    def _check_leaves(self, x: Inputs, leaves: dict[str, Tensor], number: int) -> None:
        if self._like is None:
            # Empty tensors: only the structure is kept, not the first batch.
            self._like = rebuild_inputs(x, [torch.empty(0)] * len(leaves))
            self._leaves = tuple(
                _Leaf(name, tuple(leaf.shape[1:]), leaf.dtype, prod(leaf.shape[1:]) * leaf.element_size())
                for name, leaf in leaves.items()
            )
            return
        expected = {leaf.name: (leaf.shape, leaf.dtype) for leaf in self._leaves}
        if expected.keys() != leaves.keys():
            raise DataError(f"batch {number}: has the inputs {', '.join(leaves)}; batch 0 had {', '.join(expected)}")
        for name, leaf in leaves.items():
            shape, dtype = expected[name]
            if tuple(leaf.shape[1:]) != shape or leaf.dtype != dtype:
                raise DataError(
                    f"batch {number}: {name} has samples of {tuple(leaf.shape[1:])} {leaf.dtype}, batch 0 had {shape} "
                    f"{dtype}; bring all samples to one size and dtype"
                )

    def _write(self, leaves: dict[str, Tensor]) -> None:
        columns = [_as_bytes(leaves[leaf.name]) for leaf in self._leaves]  # a dict's order may change between batches
        records = columns[0] if len(columns) == 1 else torch.cat(columns, 1)
        rest = records.numpy().data.cast("B") if records.numel() else memoryview(b"")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise DataError(_disk_message(error)) from error

    def _read_records(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        """(N, record) uint8. Read, not mapped: mapped pages count as resident memory and grow with the set."""
        size = sum(leaf.size for leaf in self._leaves)
        records = torch.empty((len(rows), size), dtype=torch.uint8)
        if not records.numel():
            return records
        buffer = records.numpy().data.cast("B")
        # Neighbours in the file are read at once.
        runs = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2, append=rows[-1] - 1) != 1)
        for first, last in pairwise(runs.tolist()):
            _read_exactly(self._file.fileno(), buffer[first * size : last * size], int(rows[first]) * size)
        return records

    def _unpack(self, records: Tensor) -> Inputs:
        tensors = []
        start = 0
        for leaf in self._leaves:
            column = records[:, start : start + leaf.size]
            start += leaf.size
            # contiguous() copies where several inputs share a record, so that view() finds an aligned start.
            tensor = column.contiguous().view(leaf.dtype).reshape(len(records), *leaf.shape)
            dtype = self._float_dtype if self._float_dtype and leaf.dtype.is_floating_point else leaf.dtype
            tensors.append(tensor.to(self.device, dtype))
        assert self._like is not None  # set by the first batch; an empty loader raises
        return rebuild_inputs(self._like, tensors)


def _as_bytes(leaf: Tensor) -> Tensor:
    """(N, bytes of a sample) uint8 on the CPU."""
    flat = leaf.detach().to("cpu").reshape(len(leaf), prod(leaf.shape[1:])).contiguous()
    return flat.view(torch.uint8) if flat.numel() else flat.to(torch.uint8)


def _read_exactly(file: int, buffer: memoryview, offset: int) -> None:
    # One read returns at most 2 GiB on Linux, and may return less.
    while buffer:
        done = os.preadv(file, [buffer], offset)
        if not done:
            raise DataError("the calibration set's temporary file is shorter than what was written to it; start again")
        buffer = buffer[done:]
        offset += done


def _disk_message(error: OSError) -> str:
    return (
        f"the calibration set cannot be kept in a temporary file in {tempfile.gettempdir()}: "
        f"{error.strerror or error}; free some space, or set TMPDIR to a folder that has it"
    )
