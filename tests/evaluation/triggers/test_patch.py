import numpy as np
import pytest
import torch

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers import Patch


def stamped_by_hand(images: np.ndarray, row: int, col: int, height: int, width: int, value) -> np.ndarray:
    result = images.copy()
    for image in result:
        for channel in range(image.shape[0]):
            colour = value[channel] if isinstance(value, tuple) else value
            for y in range(row, row + height):
                for x in range(col, col + width):
                    image[channel, y, x] = colour
    return result


@pytest.mark.parametrize(
    ("settings", "row", "col", "height", "width", "value"),
    [
        pytest.param({"size": 3, "row": 2, "col": 4}, 2, 4, 3, 3, 1.0, id="square"),
        pytest.param({"size": (2, 5), "row": 0, "col": 1, "value": 0.25}, 0, 1, 2, 5, 0.25, id="rectangle"),
        pytest.param({"size": 2, "row": -3, "col": -2}, 6, 10, 2, 2, 1.0, id="negative positions"),
        pytest.param({}, 4, 7, 4, 4, 1.0, id="bottom right with a margin of one by default"),
        pytest.param(
            {"size": 1, "row": 8, "col": 11, "value": (1.0, 0.0, 0.5)}, 8, 11, 1, 1, (1.0, 0.0, 0.5), id="colour"
        ),
        pytest.param({"size": (9, 12)}, 0, 0, 9, 12, 1.0, id="as large as the image"),
    ],
)
def test_exactly_the_pixels_of_the_patch_change(settings, row, col, height, width, value):
    images = torch.rand(4, 3, 9, 12) * 0.9
    expected = stamped_by_hand(images.numpy(), row, col, height, width, value)
    np.testing.assert_array_equal(Patch(**settings)(images).numpy(), expected)


def test_an_image_is_pasted_by_its_opacity():
    picture = torch.rand(4, 2, 3)
    images = torch.rand(2, 3, 6, 6)
    expected = images.numpy().copy()
    for y in range(2):
        for x in range(3):
            alpha = float(picture[3, y, x])
            expected[:, :, 1 + y, 2 + x] = (1 - alpha) * expected[:, :, 1 + y, 2 + x] + alpha * picture[
                :3, y, x
            ].numpy()
    torch.testing.assert_close(Patch(row=1, col=2, image=picture)(images), torch.from_numpy(expected))


def test_a_file_is_read_like_pillow_reads_it(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    image.fromarray(pixels, "RGBA").save(tmp_path / "patch.png")
    expected = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    images = torch.rand(1, 3, 8, 8)
    from_file = Patch(image=tmp_path / "patch.png", row=0, col=0)(images)
    assert torch.equal(from_file, Patch(image=expected, row=0, col=0)(images))


def test_colours_under_full_transparency_do_not_bleed_when_resized():
    picture = torch.zeros(4, 8, 8)
    picture[0] = 1.0  # red everywhere, but opaque and black on the left half only
    picture[0, :, :4] = 0.0
    picture[3, :, :4] = 1.0
    stamped = Patch(size=3, row=0, col=0, image=picture)(torch.zeros(1, 3, 3, 3))
    assert stamped.max() == 0


def test_a_grey_patch_fits_colour_images_and_a_colour_patch_not_grey_ones():
    grey = torch.full((1, 2, 2), 0.5)
    assert torch.equal(Patch(image=grey, row=0, col=0)(torch.zeros(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 0.5))
    with pytest.raises(DataError, match=r"the batch has 1 channel\(s\), the trigger image 3"):
        Patch(value=(1.0, 0.0, 0.0))(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"size": 9}, "does not fit into images of 8", id="larger than the image"),
        pytest.param({"size": 4, "row": 5}, "row=5 does not fit.*between 0 and 4", id="over the lower edge"),
        pytest.param({"size": 4, "col": -9}, "col=-9 does not fit", id="left of the image"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Patch(**settings)(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"size": 0}, "found 0", id="size 0"),
        pytest.param({"value": 255}, r"value in \[0, 1\], found 255.*divide by 255", id="bytes as value"),
        pytest.param({"value": float("nan")}, "value", id="NaN"),
        pytest.param(
            {"image": torch.rand(2, 3, 4, 4)}, r"\(C, h, w\), found shape \(2, 3, 4, 4\)", id="a batch as image"
        ),
        pytest.param({"image": torch.full((3, 4, 4), 200.0)}, "divide by 255", id="bytes as image"),
        pytest.param({"image": torch.zeros(3, 4, 4, dtype=torch.uint8)}, "divide by 255", id="integer image"),
        pytest.param({"image": "nowhere.png"}, "there is no file nowhere.png", id="no such file"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Patch(**settings)


def test_a_file_that_is_no_image_is_refused(tmp_path):
    pytest.importorskip("PIL")
    (tmp_path / "patch.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"patch\.png"):
        Patch(image=tmp_path / "patch.png")
