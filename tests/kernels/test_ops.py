"""unit_fast::clamp_bound as an operator: values, gradients, errors, and how torch.compile and torch.export see it."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.properties import examples
from unit_fast.kernels import ops
from unit_fast.kernels.ops import clamp_bound

OP = torch.ops.unit_fast.clamp_bound.default
INF, NAN = math.inf, math.nan

SHAPES = {  # id: (x, bound)
    "tensor_after_conv": ((3, 4, 5, 6), ()),
    "channel_after_conv": ((3, 4, 5, 6), (4, 1, 1)),
    "neuron_after_conv": ((3, 4, 5, 6), (4, 5, 6)),
    "channel_after_linear": ((3, 7), (7,)),
    "channel_of_tokens": ((3, 5, 7), (1, 7)),
    "neuron_of_tokens": ((3, 5, 7), (5, 7)),
    "tensor_of_scalars": ((3,), ()),
    "one_element_bound": ((3, 4, 5), (1, 1)),
    "rows": ((3, 4, 5), (4, 1)),
    "empty_batch": ((0, 4, 5), (4, 1)),
    "empty_sample": ((3, 0, 5), (5,)),
}
each_shape = pytest.mark.parametrize(("x_shape", "bound_shape"), SHAPES.values(), ids=SHAPES)


def _draw(x_shape: tuple[int, ...], bound_shape: tuple[int, ...], dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(x_shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randn(bound_shape, generator=generator, dtype=torch.float64).to(dtype)


@each_shape
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_torch_minimum(x_shape, bound_shape, dtype):
    x, bound = _draw(x_shape, bound_shape, dtype)
    y = clamp_bound(x, bound)
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert torch.equal(y, torch.minimum(x, bound))


@pytest.mark.parametrize(
    ("x", "bound", "expected"),
    [
        pytest.param(NAN, 1.0, NAN, id="nan_stays"),
        pytest.param(INF, 1.0, 1.0, id="inf_is_clamped"),
        pytest.param(-INF, 1.0, -INF, id="minus_inf_stays"),
        pytest.param(INF, INF, INF, id="infinite_bound"),
        pytest.param(5.0, -INF, -INF, id="minus_infinite_bound"),
        pytest.param(5.0, NAN, 5.0, id="nan_bound_bounds_nothing"),
        pytest.param(2.0, 2.0, 2.0, id="tie"),
        pytest.param(3.0, 0.0, 0.0, id="zero_bound"),
        pytest.param(3.0, -1.5, -1.5, id="negative_bound"),
        pytest.param(-3.0, -1.5, -3.0, id="below_negative_bound"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_boundaries(x, bound, expected, dtype):
    y = clamp_bound(torch.full((2, 40), x, dtype=dtype), torch.full((40,), bound, dtype=dtype))
    torch.testing.assert_close(y, torch.full((2, 40), expected, dtype=dtype), rtol=0, atol=0, equal_nan=True)


def test_zero_keeps_its_sign():
    y = clamp_bound(torch.tensor([[-0.0, 0.0]]), torch.tensor([0.0, -0.0]))
    assert torch.signbit(y).tolist() == [[True, False]]


def test_bound_is_cast_to_the_dtype_of_x():
    bound = torch.tensor([1.0 / 3], dtype=torch.float64)
    y = clamp_bound(torch.ones(2, 1, dtype=torch.float16), bound)
    assert y.dtype == torch.float16
    assert torch.equal(y, bound.half().expand(2, 1))


def test_non_contiguous_input():
    x, bound = _draw((6, 4, 5), (5, 4))
    x = x.transpose(1, 2)[::2]
    assert torch.equal(clamp_bound(x, bound), torch.minimum(x, bound))


def test_channels_last_stays_channels_last():
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    assert clamp_bound(x, torch.zeros(4, 1, 1)).is_contiguous(memory_format=torch.channels_last)


@each_shape
def test_gradients_against_finite_differences(x_shape, bound_shape):
    x, bound = _draw(x_shape, bound_shape)
    x, bound = x.requires_grad_(), bound.requires_grad_()
    assert torch.autograd.gradcheck(OP, (x, bound))
    assert torch.autograd.gradgradcheck(OP, (x, bound))


def test_gradient_at_ties_nan_and_infinities():
    x = torch.tensor([[1.0, 2.0, 3.0, NAN, INF, -INF]], requires_grad=True)
    bound = torch.full((6,), 2.0, requires_grad=True)
    clamp_bound(x, bound).backward(torch.full((1, 6), 10.0))
    assert x.grad is not None
    assert x.grad.tolist() == [[10.0, 10.0, 0.0, 10.0, 0.0, 10.0]]
    assert bound.grad is not None
    assert bound.grad.tolist() == [0.0, 0.0, 10.0, 0.0, 10.0, 0.0]


def test_bound_gradient_sums_the_batch_and_the_broadcast_dimensions():
    x, bound = torch.full((5, 2, 3, 3), 2.0), torch.ones(2, 1, 1, requires_grad=True)
    clamp_bound(x, bound).sum().backward()
    assert bound.grad is not None
    assert torch.equal(bound.grad, torch.full((2, 1, 1), 5.0 * 9))


def test_bound_gradient_of_an_empty_batch_is_zero():
    bound = torch.ones(4, requires_grad=True)
    clamp_bound(torch.empty(0, 4), bound).sum().backward()
    assert bound.grad is not None
    assert torch.equal(bound.grad, torch.zeros(4))


def test_gradient_keeps_the_dtype_of_the_bound():
    bound = torch.ones(4, requires_grad=True)
    clamp_bound(torch.full((3, 4), 2.0, dtype=torch.float16), bound).sum().backward()
    assert bound.grad is not None
    assert bound.grad.dtype == torch.float32
    assert torch.equal(bound.grad, torch.full((4,), 3.0))


def test_autocast_leaves_the_dtype_of_x():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = torch.randn(3, 4) @ torch.randn(4, 4)
        assert clamp_bound(product, torch.zeros(4)).dtype == torch.bfloat16
        assert clamp_bound(torch.randn(3, 4), torch.zeros(4)).dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "bound", "error", "words"),
    [
        pytest.param(torch.zeros(2, 3), torch.zeros(4), ValueError, r"\(4,\).*\(3,\)", id="wrong_length"),
        pytest.param(torch.zeros(2, 3), torch.zeros(2, 3), ValueError, "one sample", id="has_the_batch"),
        pytest.param(torch.zeros(2, 1), torch.zeros(5), ValueError, "one sample", id="would_enlarge_x"),
        pytest.param(torch.zeros(2, 4, 5, 5), torch.zeros(4), ValueError, r"\(C, 1, 1\)", id="channels_misplaced"),
        pytest.param(torch.zeros(()), torch.zeros(()), ValueError, "samples first", id="no_batch_dimension"),
        pytest.param(torch.zeros(2, 3).int(), torch.zeros(3), TypeError, "torch.int32", id="integer_x"),
        pytest.param(torch.zeros(2, 3), torch.zeros(3).long(), TypeError, "torch.int64", id="integer_bound"),
        pytest.param(torch.zeros(2, 3), torch.zeros(3, device="meta"), ValueError, "meta", id="other_device"),
    ],
)
def test_bad_arguments_are_refused(x, bound, error, words):
    with pytest.raises(error, match=words):
        clamp_bound(x, bound)


@each_shape
def test_opcheck(x_shape, bound_shape):
    x, bound = _draw(x_shape, bound_shape, torch.float32)
    torch.library.opcheck(OP, (x, bound))
    torch.library.opcheck(OP, (x.requires_grad_(), bound.requires_grad_()))


@examples(60)
@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    kept=st.lists(st.booleans(), max_size=3),
    seed=st.integers(),
)
def test_any_broadcast_shape(sizes, kept, seed):
    sample = sizes[1:]
    kept = kept[: len(sample)]
    bound_shape = [s if k else 1 for s, k in zip(sample[len(sample) - len(kept) :], kept, strict=True)]
    generator = torch.Generator().manual_seed(seed % 2**63)
    x, bound = torch.randn(sizes, generator=generator), torch.randn(bound_shape, generator=generator)
    assert torch.equal(clamp_bound(x, bound), torch.minimum(x, bound))


class _Model(nn.Module):
    bound: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("bound", torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return OP(torch.relu(self.layer(x)), self.bound) * 2


def _targets(program: torch.export.ExportedProgram) -> list[object]:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("strict", [False, True], ids=["tracing", "dynamo"])
def test_export_keeps_the_op(strict, tmp_path):
    model, x = _Model().eval(), torch.randn(3, 8)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (x,), dynamic_shapes=batch, strict=strict)
    assert _targets(program).count(OP) == 1
    program = program.run_decompositions({})
    assert _targets(program).count(OP) == 1
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert _targets(loaded).count(OP) == 1
    x = torch.randn(5, 8)
    assert torch.equal(loaded.module()(x), model(x))


def test_compile_fuses_the_clamp_without_a_graph_break():
    from torch._inductor import metrics

    def pointwise(x: Tensor, bound: Tensor) -> Tensor:
        return clamp_bound(torch.relu(x + 1), bound) * 2

    torch._dynamo.reset()
    metrics.reset()
    x, bound = torch.randn(6, 16), torch.rand(16)
    y = torch.compile(pointwise, fullgraph=True)(x, bound)
    assert torch.equal(y, pointwise(x, bound))
    assert metrics.generated_kernel_count == 1


def test_compile_differentiates():
    torch._dynamo.reset()
    x, bound = (t.requires_grad_() for t in _draw((6, 16), (16,), torch.float32))
    expected = torch.autograd.grad(clamp_bound(x, bound).square().sum(), (x, bound))
    compiled = torch.compile(clamp_bound, fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x, bound).square().sum(), (x, bound)), expected)


def test_importing_the_ops_does_not_import_triton():
    code = "import sys, unit_fast.kernels.ops; assert not any(m.split('.')[0] == 'triton' for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_without_triton_cuda_runs_the_references_and_says_so_once(monkeypatch, recwarn):
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda _: None)
    ops._triton_is_there.cache_clear()
    assert not ops._triton_is_there()
    assert not ops._triton_is_there()
    ops._triton_is_there.cache_clear()
    assert sum("install triton" in str(w.message) for w in recwarn) == 1


@pytest.mark.usefixtures("as_on_cuda")
@each_shape
def test_clamp_bound_once_is_clamp_bound(x_shape, bound_shape):
    x, bound = (t.requires_grad_() for t in _draw(x_shape, bound_shape, torch.float32))
    y = ops.clamp_bound_once(x, bound)
    exact = [t.detach().double().requires_grad_() for t in (x, bound)]
    expected = clamp_bound(*exact)
    assert torch.equal(y, clamp_bound(x, bound))
    grad = torch.randn(x_shape, generator=torch.Generator().manual_seed(1))
    for found, truth in zip(
        torch.autograd.grad(y, (x, bound), grad), torch.autograd.grad(expected, exact, grad.double()), strict=True
    ):
        torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("as_on_cuda")
def test_clamp_bound_once_is_refused_a_second_derivative_rather_than_given_a_wrong_one():
    x, bound = (t.requires_grad_() for t in _draw((3, 4), (4,), torch.float32))
    (dx,) = torch.autograd.grad(ops.clamp_bound_once(x, bound).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_clamp_bound_once_is_differentiable_to_any_order_where_no_kernel_runs():
    x, bound = (t.requires_grad_() for t in _draw((3, 4), (4,)))
    assert torch.autograd.gradgradcheck(ops.clamp_bound_once, (x, bound))
