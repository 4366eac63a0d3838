"""Exports of drawn networks with drawn bounds agree with the sanitised model."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.export.models import bounds_for
from unit_fast.bounds import Granularity
from unit_fast.export import OnnxRuntimeModel, export_onnx
from unit_fast.runtime import sanitize

ACTIVATIONS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU,
    "hardtanh": nn.Hardtanh, "prelu": nn.PReLU, "mish": nn.Mish, "hardswish": nn.Hardswish, "softplus": nn.Softplus,
}  # fmt: skip


class RandomNet(nn.Module):
    """A chain of convolutions whose activations, skips and joins are drawn."""

    def __init__(self, blocks: list[tuple[str, str, str]]) -> None:
        super().__init__()
        self.blocks = blocks
        self.convs, self.acts = nn.ModuleList(), nn.ModuleList()
        width = 4
        for conv, act, join in blocks:
            made = {
                "plain": nn.Conv2d(width, width, 3, padding=1),
                "depthwise": nn.Conv2d(width, width, 3, padding=1, groups=width),
                "grouped": nn.Conv2d(width, width, 1, groups=2),
                "transposed": nn.ConvTranspose2d(width, width, 3, padding=1),
            }[conv]
            self.convs.append(nn.Sequential(made, nn.BatchNorm2d(width)))
            self.acts.append(ACTIVATIONS[act]())
            width *= 2 if join == "concat" else 1
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:  # (N, 4, 6, 6) -> (N, 3)
        for (_, _, join), conv, act in zip(self.blocks, self.convs, self.acts, strict=True):
            y = conv(x)
            y = act(y + x) if join == "residual" else act(y)
            x = torch.cat([x, y], 1) if join == "concat" else y
            if join == "pool":
                x = nn.functional.max_pool2d(x, 3, 1, 1)
        return self.fc(x.mean((2, 3)))


BLOCKS = st.tuples(
    st.sampled_from(["plain", "depthwise", "grouped", "transposed"]),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.sampled_from(["chain", "residual", "concat", "pool"]),
)
EDGES = st.sampled_from([0.0, -0.0, 1e-40, 1e-30, 0.3, 2.0, 1e30, float("inf"), -0.2])


@pytest.mark.filterwarnings("ignore::unit_fast.export.errors.SaturationWarning")  # 1e30 is out of reach
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    blocks=st.lists(BLOCKS, min_size=1, max_size=3),
    granularity=st.sampled_from(["tensor", "channel", "neuron"]),
    edges=st.lists(EDGES, min_size=4, max_size=4),
    form=st.sampled_from(["auto", "min"]),
)
def test_random_graphs_with_any_bounds_agree(
    blocks: list[tuple[str, str, str]],
    granularity: Granularity,
    edges: list[float],
    form: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    torch.manual_seed(0)
    model = RandomNet(blocks).eval()
    x = torch.randn(3, 4, 6, 6)
    bounds = bounds_for(model, x, granularity)
    tensors = {}
    for (name, bound), edge in zip(bounds.items(), edges, strict=False):
        changed = bound.clone()
        changed.view(-1)[::2] = edge
        tensors[name] = changed
    bounds = replace(bounds, tensors=tensors)

    report = export_onnx(model, bounds, tmp_path_factory.mktemp("random") / "model.onnx", example_input=x, form=form)

    reference = sanitize(model, bounds, x, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(OnnxRuntimeModel(report.path)(x * 3), reference(x * 3), rtol=1e-4, atol=1e-4)
