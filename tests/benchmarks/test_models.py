"""The networks of the benchmarks are there, alike each time, and all of them can be captured."""

import pytest
import torch

from benchmarks.models import MODELS, available, make
from unit_fast.capture import capture
from unit_fast.sites import find_sites

SITES = {"resnet18_32": 17, "resnet20_32": 19, "vgg_32": 6, "densenet_32": 28, "vit_32": 4, "efficientnet_lite0": 33}


@pytest.mark.parametrize("name", SITES)
def test_a_network_is_captured_with_every_activation_a_site(name: str) -> None:
    if (reason := available(name)) is not None:
        pytest.skip(reason)
    model, images = make(name)
    images = images[:4]
    graph = capture(model, images)
    assert len(find_sites(graph)) == SITES[name]
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(graph(images), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
        assert not torch.equal(expected[0], expected[1])


def test_a_network_is_the_same_each_time() -> None:
    (first, images), (second, again) = make("resnet20_32"), make("resnet20_32")
    assert torch.equal(images, again)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no model 'resnet'"):
        make("resnet")
    assert "resnet50" in MODELS
