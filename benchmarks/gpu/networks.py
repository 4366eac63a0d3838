"""The networks that whole-model parts measure, sanitised, on a device."""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import make
from tests.export.models import make as make_tiny
from unit_fast.bounds import Bounds, bound_shape
from unit_fast.capture import capture
from unit_fast.runtime.calls import Call
from unit_fast.runtime.program import Program
from unit_fast.sites import expose_sites, find_sites, insert_bounds

NETWORKS = ("resnet50", "resnet18_32", "mobilenet_v2", "vit_b16", "vgg16", "convnext_t")
"""Of ``benchmarks.models``, the most telling first. "tiny" stands for a small one, for dry runs."""


def network(name: str, device: torch.device, dtype: torch.dtype | None = None) -> tuple[nn.Module, Tensor]:
    """The model, and an example batch in channels_last, on ``device``; on a GPU in half precision."""
    model, images = make_tiny("resnet") if name == "tiny" else make(name)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    place: dict[str, Any] = {"device": device, "dtype": dtype, "memory_format": torch.channels_last}
    return model.to(**place), images.to(**place)


def sanitised_network(name: str, device: torch.device, dtype: torch.dtype | None = None) -> Program:
    """The network with a bound a neuron that a tenth of the activations exceed."""
    model, images = network(name, device, dtype)
    captured = capture(model, images)
    sites = find_sites(captured)
    with torch.no_grad():
        _, activations = expose_sites(captured, sites)(images)
    tensors = {
        site.name: 0.7 * activations[site.name].amax(0).clamp_min(0).reshape(bound_shape(site, "neuron"))
        for site in sites
    }
    bounds = Bounds(
        {name: tensor.float().cpu() for name, tensor in tensors.items()}, sites, "neuron", captured.meta["fingerprint"]
    )
    module = insert_bounds(captured, {name: tensor.contiguous() for name, tensor in tensors.items()})
    return Program(module, bounds, Call.from_example(images))
