"""What serving is held against."""

import pytest
import torch
import torch._inductor.config as inductor
from torch import nn

from benchmarks.runtime import BASELINE, PROVIDERS
from unit_fast.runtime.compiled import Compiled

REASON = Compiled.unavailable(torch.device("cpu"), torch.float32)


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_the_unclamped_network_has_frozen_weights():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), inductor.patch(freezing=inductor.freezing):  # afterwards as it was
        run = PROVIDERS[BASELINE](model, x, None)
        before = run(x)
        assert torch.allclose(before, model(x), atol=1e-5)
        model[0].weight.zero_()
        assert torch.equal(run(x), before), "what is frozen no longer looks at the module"
