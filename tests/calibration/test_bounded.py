"""The graph that bounds are fitted in: its gradients, on CUDA by the kernels."""

import torch
from torch import nn

import unit_fast as uf
from unit_fast.calibration import bounded
from unit_fast.kernels import ops


def _calibrated() -> uf.Bounds:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3)).eval()
    method = uf.Unit(recipe="paper", tolerance=0.9, steps=4, learning_rate=0.1)
    return uf.calibrate(model, [(torch.randn(96, 6), torch.arange(96) % 3)], method=method)


def test_bounds_are_fitted_through_the_kernels_where_they_run(monkeypatch):
    expected = _calibrated()
    calls = []

    def counted(x: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return ops.clamp_bound(x, bound)

    monkeypatch.setattr(bounded, "clamp_bound_once", counted)
    found = _calibrated()
    assert len(calls) >= 2 * 4, "two sites, four steps"
    for name, bound in expected.items():
        assert torch.equal(found[name], bound)
