import numpy as np
import pytest
import torch

from tests.shared_data import ROOT, needs_shared_data
from unit_fast.errors import DataError
from unit_fast.evaluation.triggers import Warp


def sampled_by_hand(image: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Bilinear sampling of one image (C, H, W) at places (H, W, 2) in [-1, 1], the corners' centres being at ±1."""
    channels, height, width = image.shape
    result = np.zeros((channels, *grid.shape[:2]))
    for row, col in np.ndindex(*grid.shape[:2]):
        x = (float(grid[row, col, 0]) + 1) / 2 * (width - 1)
        y = (float(grid[row, col, 1]) + 1) / 2 * (height - 1)
        left, top = min(int(x), width - 2), min(int(y), height - 2)
        right_share, lower_share = x - left, y - top
        upper = (1 - right_share) * image[:, top, left] + right_share * image[:, top, left + 1]
        lower = (1 - right_share) * image[:, top + 1, left] + right_share * image[:, top + 1, left + 1]
        result[:, row, col] = (1 - lower_share) * upper + lower_share * lower
    return result


def test_pixels_are_taken_from_the_places_of_the_grid():
    trigger, images = Warp(seed=7, s=2.0), torch.rand(2, 3, 9, 9)
    places = trigger.grid(9, 9)[0].numpy()
    expected = np.stack([sampled_by_hand(image.astype(np.float64), places) for image in images.numpy()])
    np.testing.assert_allclose(trigger(images).numpy(), expected, rtol=0, atol=1e-5)


def test_the_grid_is_the_pixels_own_place_plus_scaled_noise():
    noise = torch.randn(1, 4, 6, 2)
    grid = Warp(noise=noise, s=0.7).grid(4, 6)
    for row, col in np.ndindex(4, 6):
        own = (-1 + 2 * col / 5, -1 + 2 * row / 3)  # x, y
        moved = [own[axis] + 0.7 * float(noise[0, row, col, axis]) / (6, 4)[axis] for axis in (0, 1)]
        np.testing.assert_allclose(grid[0, row, col].numpy(), np.clip(moved, -1, 1), rtol=0, atol=1e-6)


def test_the_drawn_field_has_control_points_of_mean_size_one_at_its_corners():
    trigger = Warp(seed=5, k=4, s=1.0)
    drawn = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1
    drawn /= drawn.abs().mean()
    noise = (trigger.grid(64, 64) - Warp(noise=torch.zeros(1, 64, 64, 2)).grid(64, 64)) * 64
    inner = noise[0, 21, 21]  # a third of the way: exactly a control point when the corners are aligned
    torch.testing.assert_close(inner, drawn[0, :, 1, 1], rtol=0, atol=1e-4)


def test_the_same_seed_draws_the_same_field_and_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second, other = Warp(seed=1).grid(8, 8), Warp(seed=1).grid(8, 8), Warp(seed=2).grid(8, 8)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_no_warp_at_all_returns_the_image():
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(Warp(noise=torch.zeros(1, 8, 8, 2))(images), images)


@needs_shared_data
def test_the_published_grids_warp_as_the_attack_does():
    folder = ROOT / "triggers" / "unit" / "wanet"
    noise = torch.load(folder / "noise_grid.pt", "cpu", weights_only=True).numpy()
    identity = torch.load(folder / "identity_grid.pt", "cpu", weights_only=True).numpy()
    places = np.clip(identity + 0.5 * noise / 32, -1, 1)[0]
    images = torch.rand(2, 3, 32, 32)
    expected = np.stack([sampled_by_hand(image.astype(np.float64), places) for image in images.numpy()])
    trigger = Warp(noise=folder / "noise_grid.pt", identity=folder / "identity_grid.pt")
    np.testing.assert_allclose(trigger(images).numpy(), expected, rtol=0, atol=1e-5)
    # Its identity grid is the one that is taken without a file.
    torch.testing.assert_close(trigger.grid(32, 32), Warp(noise=folder / "noise_grid.pt").grid(32, 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"noise": torch.zeros(8, 8, 2)}, r"\(1, H, W, 2\), found shape \(8, 8, 2\)", id="grid shape"),
        pytest.param({"noise": torch.full((1, 8, 8, 2), torch.inf)}, "infinite", id="infinite"),
        pytest.param({"s": 0.0}, "s above 0", id="no strength"),
        pytest.param({"k": 1}, "k of 2 or more, found 1", id="one point"),
        pytest.param({"noise": "nowhere.pt"}, r"there is no file nowhere\.pt", id="no such file"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Warp(**settings)


def test_images_of_another_size_than_the_grid_are_refused():
    with pytest.raises(DataError, match=r"noise grid is for images of 8×8, found 16×16"):
        Warp(noise=torch.zeros(1, 8, 8, 2))(torch.zeros(1, 3, 16, 16))
