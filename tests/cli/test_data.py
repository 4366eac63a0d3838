from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unit_fast.cli.data import Batches, Normalisation, open_samples, parse_normalisation, parse_size
from unit_fast.errors import DataError


def save_image(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)


def colour(value: int, size: tuple[int, int] = (4, 6)) -> np.ndarray:
    return np.full((*size, 3), (value, 0, 255), dtype=np.uint8)


def test_classes_are_the_sorted_folders_and_images_come_in_order(tmp_path: Path) -> None:
    for name, value in (("dog/b.png", 20), ("cat/z.png", 10), ("dog/a.png", 30), ("cat/.hidden.png", 99)):
        save_image(tmp_path / name, colour(value))
    (tmp_path / "cat/notes.txt").write_text("no image")

    samples = open_samples(tmp_path)
    x = samples.read(0, 3)

    assert samples.labels.tolist() == [0, 1, 1]
    assert x.shape == (3, 3, 4, 6)
    assert x.dtype == torch.float32
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [10, 30, 20]
    assert x[:, 2].eq(1).all()


@pytest.mark.parametrize("names", [["0", "2", "10"], ["00", "02", "10"]], ids=["bare", "leading-zeros"])
def test_numbered_folders_are_their_own_labels(tmp_path: Path, names: list[str]) -> None:
    for value, name in enumerate(names):
        save_image(tmp_path / name / "a.png", colour(value))

    samples = open_samples(tmp_path)

    labels_by_pixel = dict(
        zip((samples.read(0, 3)[:, 0, 0, 0] * 255).round().tolist(), samples.labels.tolist(), strict=True)
    )
    assert labels_by_pixel == {0: 0, 1: 2, 2: 10}


def test_grey_images_have_one_channel_when_all_are_grey(tmp_path: Path) -> None:
    save_image(tmp_path / "a/1.png", np.full((3, 3), 51, np.uint8))
    save_image(tmp_path / "b/1.png", np.full((3, 3), 102, np.uint8))

    x = open_samples(tmp_path).read(0, 2)

    assert x.shape == (2, 1, 3, 3)
    torch.testing.assert_close(x[:, 0, 0, 0], torch.tensor([0.2, 0.4]))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P"])
def test_other_modes_become_rgb_beside_colour(tmp_path: Path, mode: str) -> None:
    save_image(tmp_path / "a/1.png", colour(255))
    save_image(tmp_path / "b/1.png", np.full((4, 6, 3), 51, np.uint8), mode)

    x = open_samples(tmp_path).read(0, 2)

    assert x.shape == (2, 3, 4, 6)
    torch.testing.assert_close(x[1], torch.full((3, 4, 6), 0.2))


def test_images_alone_have_no_labels(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png", colour(1))

    (batch,) = Batches(open_samples(tmp_path), 4)

    assert batch[1] is None
    assert batch[0].shape == (1, 3, 4, 6)


def test_sizes_must_agree_unless_they_are_resized(tmp_path: Path) -> None:
    save_image(tmp_path / "a/1.png", colour(1, (4, 6)))
    save_image(tmp_path / "a/2.png", colour(1, (8, 8)))

    with pytest.raises(DataError, match=r"2\.png is 8x8, 1\.png is 4x6.*--size"):
        open_samples(tmp_path)

    assert open_samples(tmp_path, size="5x7").read(0, 2).shape == (2, 3, 5, 7)


def test_damaged_image_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    save_image(tmp_path / "a/1.png", noise)
    whole = (tmp_path / "a/1.png").read_bytes()
    (tmp_path / "a/1.png").write_bytes(whole[: len(whole) // 2])

    samples = open_samples(tmp_path)  # the header is whole

    with pytest.raises(DataError, match=r"1\.png is damaged"):
        samples.read(0, 1)


def test_text_with_the_ending_of_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_text("text")

    with pytest.raises(DataError, match=r"1\.png is no image"):
        open_samples(tmp_path)


def test_sixteen_bit_image_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a/1.png", np.full((3, 3), 40_000, np.uint16))

    with pytest.raises(DataError, match="more than 8 bits"):
        open_samples(tmp_path)


def test_empty_class_folder_is_named(tmp_path: Path) -> None:
    save_image(tmp_path / "a/1.png", colour(1))
    (tmp_path / "b").mkdir()

    with pytest.raises(DataError, match=r"no images in .*b "):
        open_samples(tmp_path)


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        pytest.param(np.full((2, 3, 5, 4), 51, np.uint8), (2, 3, 5, 4), id="uint8-nchw"),
        pytest.param(np.full((2, 5, 4, 3), 51, np.uint8), (2, 3, 5, 4), id="uint8-nhwc"),
        pytest.param(np.full((2, 5, 4), 51, np.uint8), (2, 1, 5, 4), id="uint8-grey"),
        pytest.param(np.full((2, 3, 5, 4), 0.2, np.float64), (2, 3, 5, 4), id="float64-nchw"),
        pytest.param(np.full((2, 5, 4, 1), 0.2, np.float16), (2, 1, 5, 4), id="float16-nhwc"),
    ],
)
def test_npz_layouts_come_out_as_nchw_in_0_1(tmp_path: Path, x: np.ndarray, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "data.npz", x=x, y=np.array([1, 0], np.uint8))

    samples = open_samples(tmp_path / "data.npz")

    torch.testing.assert_close(samples.read(0, 2), torch.full(shape, 0.2), rtol=1e-3, atol=0)
    assert samples.labels.tolist() == [1, 0]
    assert samples.labels.dtype == torch.int64


def test_npz_channels_stay_with_their_pixels(tmp_path: Path) -> None:
    nhwc = np.random.default_rng(0).integers(0, 255, (2, 5, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=nhwc)

    x = open_samples(tmp_path / "data.npz").read(1, 2)

    torch.testing.assert_close(x[0, 2, 4, 1], torch.tensor(nhwc[1, 4, 1, 2] / 255, dtype=torch.float32))


def test_npz_features_may_be_any_finite_numbers(tmp_path: Path) -> None:
    features = np.array([[-3.0, 7.0], [1.0, 2.0]])
    np.savez(tmp_path / "data.npz", x=features)

    assert open_samples(tmp_path / "data.npz").read(0, 2).tolist() == features.tolist()


GOOD = np.zeros((2, 3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        pytest.param({"images": GOOD}, "expected arrays x and y, found images", id="no-x"),
        pytest.param({"x": GOOD.astype(np.int64)}, "x is int64; expected uint8", id="integers"),
        pytest.param({"x": GOOD + 3}, r"values from 3 to 3; expected floats in \[0, 1\]", id="out-of-range"),
        pytest.param(
            {"x": np.where(np.arange(2)[:, None, None, None] == 1, np.nan, GOOD)}, r"x\[1\] holds NaN", id="nan"
        ),
        pytest.param({"x": np.full((2, 3), np.inf)}, r"x\[0\] holds NaN or infinity", id="infinite-features"),
        pytest.param({"x": np.zeros((2, 7, 4, 4), np.uint8)}, "with 1 or 3 channels", id="seven-channels"),
        pytest.param({"x": np.zeros((2, 3, 4, 3), np.uint8)}, "cannot tell which", id="ambiguous"),
        pytest.param({"x": np.zeros((0, 3, 4, 4), np.uint8)}, r"x has shape \(0, 3, 4, 4\)", id="empty"),
        pytest.param({"x": GOOD, "y": np.zeros(3, int)}, r"y is int64 of shape \(3,\)", id="label-count"),
        pytest.param({"x": GOOD, "y": np.zeros(2)}, "y is float64", id="float-labels"),
        pytest.param({"x": GOOD, "y": np.array([0, -1])}, "y holds -1", id="negative-label"),
        pytest.param({"x": np.array([{}, {}], dtype=object)}, "Python objects, which are not unpickled", id="objects"),
    ],
)
def test_npz_that_cannot_be_used_is_said(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)

    with pytest.raises(DataError, match=says):
        open_samples(tmp_path / "data.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"just text"], ids=["empty", "truncated", "text"])
def test_npz_that_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)

    with pytest.raises(DataError, match=r"is damaged, or no \.npz file"):
        open_samples(tmp_path / "data.npz")


def test_path_that_is_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "data.csv").touch()

    with pytest.raises(DataError, match="there is no such file or folder"):
        open_samples(tmp_path / "absent")
    with pytest.raises(DataError, match=r"expected a folder of images or an \.npz file"):
        open_samples(tmp_path / "data.csv")


def test_batches_are_read_one_at_a_time_and_again_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(0, 255, (7, 3, 4, 4), dtype=np.uint8), y=np.arange(7))
    batches = Batches(open_samples(tmp_path / "d.npz"), 3, Normalisation((0.5,), (0.25,)))

    first, second = list(batches), list(batches)

    assert [len(x) for x, _ in first] == [3, 3, 1]
    assert len(batches) == 3
    assert torch.cat([y for _, y in first if y is not None]).tolist() == list(range(7))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))
    assert torch.equal(batches.example(), first[0][0][:2])


def test_normalisation_by_channel() -> None:
    x = torch.rand(2, 3, 4, 4)

    normalised = parse_normalisation("0.1, 0.2,0.3", "0.5")(x)

    torch.testing.assert_close(normalised[:, 1], (x[:, 1] - 0.2) / 0.5)


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        ("a", None, "--mean a: expected numbers"),
        (None, "0", "--std 0: expected numbers above 0"),
        ("nan", None, "--mean nan: expected finite numbers"),
        ("0.1,0.2", None, "--mean has 2 numbers for images of 3"),
    ],
)
def test_normalisation_that_cannot_be(mean: str | None, std: str | None, says: str) -> None:
    with pytest.raises(DataError, match=says):
        parse_normalisation(mean, std)(torch.rand(1, 3, 2, 2))


@pytest.mark.parametrize("text", ["0", "4x", "x4", "4x4x4", "-3", "big"])
def test_size_that_cannot_be(text: str) -> None:
    with pytest.raises(DataError, match="--size"):
        parse_size(text)
