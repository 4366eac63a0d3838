import pytest
import torch
from torch import Tensor

from unit_fast.errors import DataError
from unit_fast.evaluation.triggers import Add, Blend, Custom, Patch, Sinusoid, Warp, describe

IMAGE = torch.linspace(0, 1, 3 * 8 * 8).view(3, 8, 8)
TRIGGERS = {
    "patch": Patch(size=2),
    "blend": Blend(IMAGE, ratio=0.3),
    "add": Add(0.2 * IMAGE),
    "sinusoid": Sinusoid(),
    "warp": Warp(seed=3),
}
each_trigger = pytest.mark.parametrize("trigger", TRIGGERS.values(), ids=TRIGGERS.keys())


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@each_trigger
def test_the_batch_given_is_not_modified_and_the_result_stays_in_range(trigger, images):
    before = images.clone()
    triggered = trigger(images)
    assert torch.equal(images, before)
    assert not torch.equal(triggered, images)
    assert triggered.shape == images.shape
    assert triggered.dtype == images.dtype
    assert triggered.min() >= 0
    assert triggered.max() <= 1


@each_trigger
def test_each_image_is_treated_alone(trigger, images):
    together = trigger(images)
    alone = torch.cat([trigger(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@each_trigger
def test_an_empty_batch_stays_empty(trigger):
    assert trigger(torch.empty(0, 3, 8, 8)).shape == (0, 3, 8, 8)


@each_trigger
def test_double_precision_is_kept(trigger, images):
    assert trigger(images.double()).dtype == torch.float64


@each_trigger
def test_channels_last_and_strided_batches_give_the_same_pixels(trigger, images):
    expected = trigger(images)
    torch.testing.assert_close(trigger(images.contiguous(memory_format=torch.channels_last)), expected)
    strided = torch.stack((images, images), dim=1)[:, 0]
    assert not strided.is_contiguous()
    torch.testing.assert_close(trigger(strided), expected)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        pytest.param(torch.rand(5, 10), r"\(N, C, H, W\), found shape \(5, 10\).*Custom", id="not images"),
        pytest.param(torch.rand(3, 8, 8), r"found shape \(3, 8, 8\)", id="one image without a batch"),
        pytest.param(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "divide by 255", id="bytes"),
        pytest.param(torch.full((1, 3, 8, 8), 2.6), r"\[0, 1\], found values from 2.6.*preprocess", id="normalised"),
        pytest.param(torch.full((1, 3, 8, 8), -0.5), "found values from -0.5", id="negative"),
        pytest.param(torch.full((1, 3, 8, 8), torch.nan), "found values from nan", id="NaN"),
        pytest.param([[1.0]], "found list", id="a list"),
    ],
)
@each_trigger
def test_what_is_no_image_in_the_pixel_range_is_refused(trigger, batch, message):
    with pytest.raises(DataError, match=message):
        trigger(batch)


def test_rounding_just_outside_the_range_is_accepted():
    Patch(size=2)(torch.full((1, 3, 8, 8), 1 + 1e-6))


def test_triggers_are_equal_when_their_settings_are():
    assert Patch(size=2, row=1) == Patch(size=2, row=1)
    assert Patch(size=2, row=1) != Patch(size=2, row=2)
    assert Blend(IMAGE) == Blend(IMAGE.clone())
    assert Blend(IMAGE) != Blend(IMAGE / 2)
    assert Blend(IMAGE) != Add(IMAGE)
    assert len({Sinusoid(), Sinusoid(), Sinusoid(frequency=3)}) == 2


def test_triggers_are_frozen():
    with pytest.raises(AttributeError):
        Patch().size = 3  # type: ignore[misc]


def test_descriptions_name_the_settings():
    assert describe(Patch(size=4, row=27, col=27)) == "patch:size=4,row=27,col=27,value=1"
    assert describe(Patch(size=(2, 3), value=(1.0, 0.0, 0.5))) == "patch:size=2x3,value=1/0/0.5"
    assert describe(Blend(IMAGE, 0.25)) == "blend:image=<tensor 3x8x8>,ratio=0.25"
    assert describe(test_triggers_are_frozen) == "test_triggers_are_frozen"
    assert describe(Custom(torch.flip)).startswith("custom:")
