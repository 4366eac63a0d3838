import io

import numpy as np
import pytest
import torch

from unit_fast.evaluation.png import encode_png


@pytest.mark.parametrize("channels", [1, 3])
def test_pillow_reads_the_same_pixels(channels):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    data = encode_png(torch.from_numpy(pixels).float() / 255)
    with image.open(io.BytesIO(data)) as read:
        read.load()
        assert read.mode == {1: "L", 3: "RGB"}[channels]
        found = np.asarray(read)
    np.testing.assert_array_equal(found.reshape(5, 7, channels).transpose(2, 0, 1), pixels)


def test_large_images_are_shrunk_in_proportion_and_values_cut_to_the_range():
    image = pytest.importorskip("PIL.Image")
    with image.open(io.BytesIO(encode_png(torch.full((3, 200, 400), 1.7), longest_side=100))) as read:
        assert read.size == (100, 50)
        assert read.getextrema() == ((255, 255),) * 3


def test_the_same_pixels_give_the_same_bytes():
    pixels = torch.rand(3, 9, 9)
    assert encode_png(pixels) == encode_png(pixels.clone())


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="found 4"):
        encode_png(torch.rand(4, 2, 2))
