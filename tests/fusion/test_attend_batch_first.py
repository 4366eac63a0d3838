"""Self-attention with the batch first: the same values, no transposition, and nothing else changes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fusion.fusing import operators
from unit_fast.capture import capture
from unit_fast.fusion.attend_batch_first import attend_batch_first


class Attention(nn.Module):
    """A block's attention, as torchvision and torch's own encoder have it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, **{"batch_first": True, **options})

    def forward(self, x: Tensor) -> Tensor:  # (N, 5, 12)
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class Masked(Attention):
    def forward(self, x: Tensor) -> Tensor:
        y, mask = self.norm(x), torch.ones(5, 5, dtype=torch.bool, device=x.device).triu(1)
        return x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]


class Crossed(Attention):
    """Queries are not what keys and values are made of."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, x, x, need_weights=False)[0]


class WithWeights(Attention):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        out, weights = self.attention(y, y, y)
        return x + out + weights.mean()


def rewritten(model: nn.Module) -> tuple[Any, int]:
    """The graph after the pass, checked at two batch sizes, and how many attentions changed."""
    torch.manual_seed(1)
    x = torch.randn(3, 5, 12)
    module = capture(model.eval(), x)
    batches = (x, torch.cat([x, 2 * x, -x]))
    with torch.no_grad():
        expected = [module(batch) for batch in batches]
        count = attend_batch_first(module)
        module.graph.lint()
        module.recompile()
        for batch, want in zip(batches, expected, strict=True):
            torch.testing.assert_close(module(batch), want, rtol=1e-5, atol=1e-6)
    return module, count


@pytest.mark.parametrize("network", [Attention(), Attention(bias=False), Masked()], ids=["plain", "no bias", "masked"])
def test_nothing_is_transposed_but_the_heads(network):
    module, count = rewritten(network)
    assert count == 1
    left = operators(module)
    assert left["aten.linear"] == 2
    assert left["aten.transpose"] == 1, "behind the attention, of memory that lies so already"
    attention = next(n for n in module.graph.nodes if n.target is torch.ops.aten.scaled_dot_product_attention.default)
    assert all(operand.meta["val"].stride()[-1] == 1 for operand in attention.args[:3])
    (output,) = (node.args[0][0] for node in module.graph.nodes if node.op == "output")
    assert output.meta["val"].is_contiguous()


def test_a_whole_encoder():
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    module, count = rewritten(nn.Sequential(nn.Linear(12, 12), encoder, nn.LayerNorm(12)))
    assert count == 2
    assert operators(module)["aten.scaled_dot_product_attention"] == 2, "the old ones are gone"


@pytest.mark.parametrize(
    "network",
    [Attention(batch_first=False), Crossed(), WithWeights()],
    ids=["tokens first", "other queries", "weights are read"],
)
def test_what_is_something_else_stays(network):
    assert rewritten(network)[1] == 0
