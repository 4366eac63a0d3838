"""The calibration set on disk: what goes in comes out, and what is wrong with it is said."""

import errno
import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from unit_fast.calibration.samples import SampleStore
from unit_fast.errors import DataError


def labelled(count: int = 20, size: int = 6, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(count) % classes


def one_shot(x: torch.Tensor, y: torch.Tensor | None, batch: int = 7) -> Iterator[tuple[torch.Tensor, Any]]:
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        yield x[rows], None if y is None else y[rows]


def test_a_one_shot_generator_is_read_once_and_kept_whole() -> None:
    x, y = labelled()
    loader = one_shot(x, y)
    with SampleStore(loader) as samples:
        assert list(loader) == []
        batch = samples.read(torch.arange(20))
        assert torch.equal(batch.x, x)
        assert torch.equal(batch.y, y)
        assert len(samples) == 20
        assert samples.input_shapes == {"x": (2, 6, 6)}


def test_a_shuffling_loader_keeps_samples_and_labels_together() -> None:
    x, y = labelled()
    loader = DataLoader(TensorDataset(x, y), batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(1))
    with SampleStore(loader) as samples:
        found = samples.read(torch.arange(20))
    by_first = {float(image.flatten()[0]): int(label) for image, label in zip(x, y, strict=True)}
    assert [by_first[float(image.flatten()[0])] for image in found.x] == found.y.tolist()
    assert not torch.equal(found.x, x)


@pytest.mark.parametrize(
    "indices",
    [[0], [19], [3, 4, 5], [5, 4, 3], [2, 2, 2], [0, 19, 7, 8, 1], [18, 19, 0, 1], []],
    ids=lambda indices: "-".join(map(str, indices)) or "none",
)
def test_reads_any_indices_in_their_order(indices: list[int]) -> None:
    x, y = labelled()
    with SampleStore(one_shot(x, y)) as samples:
        batch = samples.read(torch.tensor(indices, dtype=torch.int64))
    assert torch.equal(batch.x, x[indices])
    assert torch.equal(batch.y, y[indices])


@pytest.mark.parametrize("index", [-1, 20])
def test_reading_beyond_the_set_raises(index: int) -> None:
    with SampleStore(one_shot(*labelled())) as samples, pytest.raises(IndexError, match="0 … 19"):
        samples.read(torch.tensor([0, index]))


def test_what_was_read_is_not_changed_by_reading_on() -> None:
    x, y = labelled()
    with SampleStore(one_shot(x, y)) as samples:
        kept = [batch.x for batch in samples.batches(batch_size=4)]
    assert torch.equal(torch.cat(kept), x)
    assert [len(part) for part in kept] == [4] * 5


def test_shuffled_batches_draw_from_the_generator_alone() -> None:
    x, y = labelled()
    rows = torch.arange(5, 18)

    def epoch(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([batch.x for batch in samples.shuffled_batches(rows, 4, generator)])

    with SampleStore(one_shot(x, y)) as samples:
        first, again, other = epoch(1), epoch(1), epoch(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert sorted(first.flatten(1)[:, 0].tolist()) == sorted(x[rows].flatten(1)[:, 0].tolist())


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool],
    ids=str,
)
def test_every_dtype_comes_back_as_it_was(dtype: torch.dtype) -> None:
    x = (torch.rand(9, 3, 5, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    with SampleStore([(x, torch.arange(9))]) as samples:
        batch = samples.read(torch.arange(9))
    assert batch.x.dtype == dtype
    assert torch.equal(batch.x, x)


def test_floating_inputs_are_given_out_in_the_models_dtype() -> None:
    x = {"image": torch.rand(4, 3, dtype=torch.float64), "token": torch.arange(4)}
    with SampleStore([(x, None)], float_dtype=torch.float16) as samples:
        out = samples.read(torch.arange(4)).x
    assert out["image"].dtype == torch.float16
    assert out["token"].dtype == torch.int64
    assert torch.equal(out["image"], x["image"].half())


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no-labels"])
def test_several_inputs_as_a_tuple(labels: bool) -> None:
    # 3 bytes beside 8-byte numbers: records whose parts are not aligned.
    a, b = torch.arange(15, dtype=torch.uint8).reshape(5, 3), torch.rand(5, 2, dtype=torch.float64)
    with SampleStore([((a, b), torch.arange(5) if labels else None)]) as samples:
        batch = samples.read(torch.tensor([4, 0, 1]))
    assert isinstance(batch.x, tuple)
    assert torch.equal(batch.x[0], a[[4, 0, 1]])
    assert torch.equal(batch.x[1], b[[4, 0, 1]])


def test_several_inputs_as_a_dict_without_labels() -> None:
    x = {"left": torch.rand(5, 3), "right": torch.rand(5, 2, 2)}
    with SampleStore([x, x]) as samples:
        batch = samples.read(torch.tensor([9]))
        assert samples.input_shapes == {"x['left']": (3,), "x['right']": (2, 2)}
    assert list(batch.x) == ["left", "right"]
    assert torch.equal(batch.x["right"], x["right"][4:])


def test_inputs_by_name_may_come_in_another_order() -> None:
    left, right = torch.rand(2, 3), torch.rand(2, 3)
    with SampleStore([{"left": left, "right": right}, {"right": right, "left": left}]) as samples:
        batch = samples.read(torch.arange(4))
    assert torch.equal(batch.x["left"], left.repeat(2, 1))
    assert torch.equal(batch.x["right"], right.repeat(2, 1))


@pytest.mark.parametrize("batch", ["tensor", "list", "pair"])
def test_x_alone_has_no_labels(batch: str) -> None:
    x = torch.rand(4, 3)
    item = {"tensor": x, "list": [x], "pair": (x, None)}[batch]
    with SampleStore([item]) as samples:
        assert samples.labels is None
        assert not samples.labels_given
        assert samples.read(torch.arange(4)).y.tolist() == [-1] * 4
        samples.set_labels(torch.tensor([0, 1, 0, 1]))
        assert samples.read(torch.tensor([3])).y.tolist() == [1]


def test_numpy_arrays_and_lists_of_labels_are_taken() -> None:
    x = np.arange(12.0).reshape(4, 3)
    x.setflags(write=False)
    with SampleStore([(x, [0, 1, 1, 0])]) as samples:
        batch = samples.read(torch.arange(4))
    assert batch.x.tolist() == x.tolist()
    assert batch.y.tolist() == [0, 1, 1, 0]


def test_inputs_that_require_gradients_or_are_strided_are_taken_at_their_values() -> None:
    x = torch.rand(4, 6, 3).transpose(1, 2).requires_grad_()
    with SampleStore([x[::2]]) as samples:
        found = samples.read(torch.arange(2)).x
    assert not found.requires_grad
    assert torch.equal(found, x.detach()[::2])


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    samples = SampleStore(one_shot(*labelled()))
    assert list(tmp_path.iterdir()) == []  # unlinked while in use, so that a kill leaves nothing either
    samples.close()
    with pytest.raises(ValueError, match="closed"):
        samples.read(torch.arange(2))


def test_a_failing_loader_closes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def open_files() -> set[str]:
        targets = {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}
        return {target for target in targets if target.startswith(str(tmp_path))}

    def interrupted() -> Iterator[torch.Tensor]:
        yield torch.rand(3, 2)
        assert open_files()
        raise KeyboardInterrupt

    if not Path("/proc/self/fd").exists():
        pytest.skip("open files are read from /proc")
    with pytest.raises(KeyboardInterrupt):
        SampleStore(interrupted())
    gc.collect()
    assert open_files() == set()


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class FullFile:
        def write(self, _: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: FullFile())
    with pytest.raises(DataError, match=r"No space left on device; free some space, or set TMPDIR"):
        SampleStore(one_shot(*labelled()))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_kernels_own_full_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb", buffering=0))  # noqa: PTH123, SIM115
    with pytest.raises(DataError, match="No space left on device"):
        SampleStore(one_shot(*labelled()))


x3 = torch.rand(3, 2)
BAD: dict[str, tuple[list[Any], str]] = {
    "empty": ([], "loader is empty"),
    "empty-batches": ([(torch.rand(0, 2), torch.zeros(0, dtype=torch.int64))], "loader is empty"),
    "nan": ([x3, torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])], r"batch 1, sample 1: 1 of 2 values of x are"),
    "infinite": ([(x3.half(), None), (x3.half() * float("inf"), None)], r"batch 1, sample 0: 2 of 2 values"),
    "nan-in-second-input": ([((x3, x3 / 0 * 0), None)], r"values of x\[1\]"),
    "other-shape": ([x3, torch.rand(3, 4)], r"batch 1: x has samples of \(4,\) torch.float32, batch 0 had \(2,\)"),
    "other-dtype": ([x3, x3.double()], r"batch 1: .*float64, batch 0 had .*float32"),
    "other-inputs": ([{"a": x3}, {"b": x3}], r"batch 1: has the inputs x\['b'\]; batch 0 had x\['a'\]"),
    "other-lengths": ([((x3, torch.rand(2, 2)), None)], r"batch 0: .* different numbers of samples: \[2, 3\]"),
    "three-parts": ([(x3, x3, x3)], r"batch 0: is a tuple of 3; expected \(x, y\)"),
    "no-tensor": ([("a.png", None)], "batch 0: x is a str"),
    "no-tensor-inside": ([(({"a": x3, "b": "b.png"},), None)], r"batch 0: x\[0\]\['b'\] is a str"),
    "nothing-inside": ([(({},), None)], r"x\[0\] is an empty dict"),
    "nothing-in-tuple": ([((), None)], "x is an empty tuple"),
    "single-number": ([torch.tensor(3.0)], "single number"),
    "labels-missing-later": ([(x3, torch.arange(3)), (x3, None)], "batch 1: has no labels, unlike batch 0"),
    "labels-missing-first": ([(x3, None), (x3, torch.arange(3))], "batch 1: has labels, unlike batch 0"),
    "float-labels": ([(x3, torch.tensor([0.0, 1.0, 2.0]))], r"torch.float32; expected integer class indices"),
    "one-hot": ([(x3, torch.eye(3))], r"one-hot vectors or scores; .*argmax"),
    "one-hot-integers": ([(x3, torch.eye(3, dtype=torch.int64))], "one-hot"),
    "column-of-labels": ([(x3, torch.zeros(3, 1, dtype=torch.int64))], r"squeeze\(1\)"),
    "too-few-labels": ([(x3, torch.arange(2))], r"expected labels of shape \(3,\).*got \(2,\)"),
    "negative-label": ([(x3, torch.arange(3)), (x3, torch.tensor([0, -1, 1]))], "batch 1, sample 1: label -1"),
    "words-as-labels": ([(x3, ["cat", "dog", "cat"])], "labels are a list"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_data_is_a_clear_error(case: str) -> None:
    loader, message = BAD[case]
    with pytest.raises(DataError, match=message):
        SampleStore(iter(loader))


def test_a_sum_that_overflows_is_no_infinity() -> None:
    with SampleStore([torch.full((2, 1000), 6e4, dtype=torch.float16)]) as samples:
        assert len(samples) == 2


def test_labels_beyond_the_models_classes_name_batch_and_sample() -> None:
    x, y = labelled(20, classes=4)
    with SampleStore(one_shot(x, y, batch=7)) as samples:
        samples.check_labels(4)
        with pytest.raises(
            DataError, match=r"batch 0, sample 3: label 3 is out of range, the model has 3 classes .* 5 su"
        ):
            samples.check_labels(3)
        assert samples.where(13) == "batch 1, sample 6"
        assert samples.where(14) == "batch 2, sample 0"


def test_labels_that_do_not_fit_are_not_set() -> None:
    with SampleStore([x3]) as samples:
        with pytest.raises(DataError, match="3 class indices"):
            samples.set_labels(torch.zeros(4, dtype=torch.int64))
        with pytest.raises(DataError, match="no labels"):
            samples.split()


def test_given_labels_split_strictly_and_predicted_ones_leniently() -> None:
    labels = torch.tensor([0, 0, 1])
    with SampleStore([(x3, labels)]) as samples, pytest.raises(DataError, match="single sample"):
        samples.split()
    with SampleStore([x3]) as samples:
        samples.set_labels(labels)
        with pytest.warns(UserWarning, match="single calibration sample"):
            assert samples.split().validation.tolist() != []
