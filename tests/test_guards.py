"""Which conditions of an exported program mean that a model branches on its batch size."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import unit_fast as uf
from tests.runtime.networks import bounds_of
from unit_fast.capture import capture
from unit_fast.export import OnnxRuntimeModel, export_onnx
from unit_fast.guards import require_any_batch

X, M = "L['x'].size()[0]", "L['m'].size()[0]"


@pytest.mark.parametrize(
    "guard", [f"2 <= {X}", f"{X} == {M}", f"(48*{M}) == (48*{X})", f"{X} <= 880801", "L['d']['x'].size()[0] == " + X]
)
def test_what_every_batch_fulfils(guard):
    require_any_batch(SimpleNamespace(_guards_code=[guard]))


@pytest.mark.parametrize("guard", [f"{X} <= 32", f"(48*{M}) == (24*{X})", f"(640*{M}) % (32*{X}) == 0", f"{X} != 4"])
def test_what_branches_is_refused_with_its_condition(guard):
    program = SimpleNamespace(_guards_code=[f"2 <= {X}", guard])
    with pytest.raises(uf.CaptureError, match=r"holds only where .*x\.shape\[0\]"):
        require_any_batch(program)


class Decoder(nn.Module):
    """Attends from one input to another, whose samples torch.export can only tell to be as many."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: Tensor, m: Tensor) -> Tensor:  # (N, 5, 16), (N, 7, 16) -> (N, 5, 16)
        return self.layer(x, m)


def test_attention_between_two_inputs_is_captured_clamped_and_exported(tmp_path):
    torch.manual_seed(0)
    model, pair = Decoder().eval(), (torch.randn(3, 5, 16), torch.randn(3, 7, 16))
    graph = capture(model, pair)
    fast = uf.sanitize(model, bounds_of(model, pair), pair, backend="eager")
    export_onnx(model, fast.bounds, tmp_path / "m.onnx", example_input=pair)
    file = OnnxRuntimeModel(tmp_path / "m.onnx")

    for batch in (1, 2, 5):
        x, m = torch.randn(batch, 5, 16), torch.randn(batch, 7, 16)
        torch.testing.assert_close(graph(x, m), model(x, m), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(file(x, m), fast(x, m), rtol=1e-4, atol=1e-5)
        assert fast.monitor(x, m)[1].shape == (batch,)
