import numpy as np
import pytest
import torch

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers import Blend


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.0])
def test_every_pixel_is_mixed(ratio):
    picture, images = torch.rand(3, 5, 6), torch.rand(4, 3, 5, 6)
    expected = np.empty(images.shape, dtype=np.float64)
    for n, c, y, x in np.ndindex(*images.shape):
        expected[n, c, y, x] = (1 - ratio) * float(images[n, c, y, x]) + ratio * float(picture[c, y, x])
    np.testing.assert_allclose(Blend(picture, ratio)(images).numpy(), expected, rtol=0, atol=1e-6)


def triangle_weights(before: int, after: int) -> np.ndarray:
    """Weights (after, before) of shrinking by averaging under a triangle as wide as two of the new pixels."""
    scale = before / after
    weights = np.empty((after, before))
    for new, old in np.ndindex(after, before):
        weights[new, old] = max(0.0, 1 - abs((old + 0.5) / scale - (new + 0.5)))
    return weights / weights.sum(1, keepdims=True)


def test_a_picture_of_another_size_is_brought_to_the_images_size():
    picture = torch.rand(1, 8, 12)
    expected = triangle_weights(8, 4) @ picture[0].double().numpy() @ triangle_weights(12, 3).T
    blended = Blend(picture, 1.0)(torch.zeros(1, 1, 4, 3))
    np.testing.assert_allclose(blended[0, 0].numpy(), expected, rtol=0, atol=1e-5)


def test_a_saved_tensor_is_read_without_unpickling_anything_else(tmp_path):
    picture = torch.rand(3, 4, 4)
    torch.save(picture, tmp_path / "picture.pt")
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(Blend(tmp_path / "picture.pt")(images), Blend(picture)(images))
    torch.save({"picture": picture}, tmp_path / "dict.pt")
    with pytest.raises(DataError, match=r"dict\.pt to hold one tensor, found dict"):
        Blend(tmp_path / "dict.pt")
    torch.save(Unsafe(), tmp_path / "code.pt")
    with pytest.raises(DataError, match=r"code\.pt"):
        Blend(tmp_path / "code.pt")


class Unsafe:
    def __reduce__(self):
        return (pytest.fail, ("code of a file was run",))


@pytest.mark.parametrize(
    ("image", "ratio", "message"),
    [
        pytest.param(torch.rand(3, 4, 4), 1.5, r"ratio in \[0, 1\], found 1.5", id="ratio"),
        pytest.param(torch.rand(4, 4, 4), 0.2, "without transparency", id="transparency"),
        pytest.param(torch.rand(3, 4, 4) * 255, 0.2, "divide by 255", id="range"),
        pytest.param(torch.full((3, 4, 4), torch.nan), 0.2, "NaN", id="NaN"),
    ],
)
def test_impossible_settings_are_refused(image, ratio, message):
    with pytest.raises(DataError, match=message):
        Blend(image, ratio)
