"""epilogue, linear, conv2d as operators; their values are test_reference's and test_checks' business."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unit_fast.kernels import ops
from unit_fast.kernels.ops import conv2d, epilogue, linear


def _conv_arguments(requires_grad: bool = False) -> tuple[object, ...]:
    torch.manual_seed(0)
    tensors = [torch.randn(s) for s in ((2, 4, 5, 5), (6, 4, 3, 3), (6,), (2, 6, 3, 3), (6, 3, 3))]
    tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    return (*(t.requires_grad_(requires_grad) for t in tensors), [2, 2], [1, 1], [1, 1], 1, "elu", [0.5])


def _linear_arguments(requires_grad: bool = False) -> tuple[object, ...]:
    torch.manual_seed(0)
    tensors = [torch.randn(s).requires_grad_(requires_grad) for s in ((2, 3, 4), (6, 4), (6,), (2, 3, 6), (1, 6))]
    return (*tensors, "gelu", [])


def _epilogue_arguments(requires_grad: bool = False) -> tuple[object, ...]:
    torch.manual_seed(0)
    shapes = ((2, 4, 5, 5), (4, 1, 1), (4, 1, 1), (2, 4, 5, 5), (4, 5, 5))
    return (*(torch.randn(s).requires_grad_(requires_grad) for s in shapes), "leaky_relu", [0.2])


FAMILY = {"epilogue": _epilogue_arguments, "linear": _linear_arguments, "conv2d": _conv_arguments}
each_op = pytest.mark.parametrize("name", FAMILY)
_RESIDUAL = 3  # its place in all three schemas


@each_op
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
def test_opcheck(name, requires_grad):
    torch.library.opcheck(getattr(torch.ops.unit_fast, name).default, FAMILY[name](requires_grad))


@each_op
def test_gradients_against_finite_differences(name):
    def double(a: object) -> object:
        return a.detach().double().requires_grad_() if isinstance(a, Tensor) else a

    arguments = tuple(double(a) for a in FAMILY[name]())
    assert torch.autograd.gradcheck(getattr(torch.ops.unit_fast, name).default, arguments, fast_mode=True)


@each_op
def test_compiles_without_a_graph_break_and_exports_whole(name):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rest = [a.detach() if isinstance(a, Tensor) else a for a in FAMILY[name]()[1:]]
            self.rest[0] = nn.Parameter(self.rest[0])
            self.parameter = self.rest[0]

        def forward(self, x: Tensor) -> Tensor:
            return getattr(torch.ops.unit_fast, name).default(x + 1, *self.rest) * 2

    model, x = Model(), FAMILY[name]()[0]
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(x)
        torch.testing.assert_close(compiled, model(x))
        assert compiled.stride() == model(x).stride()
    program = torch.export.export(model, (x,)).run_decompositions({})
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(getattr(torch.ops.unit_fast, name).default) == 1


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_autocast_casts_as_torch_does(name):
    x, weight, bias, residual, *rest = FAMILY[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = getattr(torch.ops.unit_fast, name).default(x, weight, bias, residual, *rest)
    low = (x.bfloat16(), weight.bfloat16(), bias, residual.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, getattr(torch.ops.unit_fast, name).default(*low, *rest))


@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("w_format", [torch.contiguous_format, torch.channels_last], ids=["oihw", "ohwi"])
def test_conv2d_layout_follows_its_operands(x_format, w_format):
    x, w = torch.randn(2, 4, 5, 5).to(memory_format=x_format), torch.randn(6, 4, 3, 3).to(memory_format=w_format)
    y = conv2d(x, w, bound=torch.rand(6, 3, 3))
    expect_nhwc = torch.channels_last in (x_format, w_format)
    assert y.is_contiguous(memory_format=torch.channels_last if expect_nhwc else torch.contiguous_format)
    assert y.stride() == conv2d(x.to("meta"), w.to("meta")).stride()


@pytest.mark.parametrize(
    ("op", "arguments", "shape"),
    [
        pytest.param(epilogue, (torch.zeros(0, 4),), (0, 4), id="epilogue"),
        pytest.param(linear, (torch.zeros(0, 4), torch.zeros(3, 4), torch.zeros(3)), (0, 3), id="linear"),
        pytest.param(conv2d, (torch.zeros(0, 4, 5, 5), torch.zeros(3, 4, 3, 3)), (0, 3, 3, 3), id="conv2d"),
    ],
)
def test_takes_an_empty_batch(op, arguments, shape):
    assert op(*arguments).shape == shape


def test_is_safe_in_several_threads():
    from concurrent.futures import ThreadPoolExecutor

    arguments = FAMILY["conv2d"]()
    op = torch.ops.unit_fast.conv2d.default
    expected = op(*arguments)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, expected) for y in pool.map(lambda _: op(*arguments), range(40)))


# On CUDA. What is registered can be read anywhere; called here by name, since no tensor here dispatches to it.


@each_op
def test_cuda_has_a_registration_of_its_own(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"unit_fast::{name}", "CUDA")


@pytest.mark.usefixtures("as_on_cuda")
@each_op
def test_cuda_runs_what_the_dispatch_chooses(name, monkeypatch):
    from unit_fast.kernels import dispatch

    calls = []
    monkeypatch.setattr(dispatch, f"run_{name}", lambda *args: calls.append(args) or args[0])
    arguments = FAMILY[name]()
    reference = getattr(ops, f"_{name}")
    kernel = ops._on_cuda(name, reference)
    assert kernel(*arguments) is arguments[0]
    assert all(given is sent for given, sent in zip(arguments, calls[0], strict=True))
    double = [a.double() if isinstance(a, Tensor) else a for a in arguments]
    assert torch.equal(kernel(*double), reference(*double))
    assert kernel(*(a[:0] if i in (0, _RESIDUAL) else a for i, a in enumerate(arguments))).shape[0] == 0
    assert len(calls) == 1, "float64 and an empty batch are the reference's"


@pytest.mark.usefixtures("as_on_cuda")
@each_op
def test_cuda_gives_the_reference_s_values(name):
    arguments = FAMILY[name]()
    reference = getattr(ops, f"_{name}")
    expected = reference(*arguments)
    with torch.no_grad():
        y = ops._on_cuda(name, reference)(*arguments)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert y.stride() == expected.stride()
