"""What is asked of cuDNN's graph API, with a stand-in for it: no cuDNN has run these graphs."""

import dataclasses
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.dispatch.fake_cudnn import FakeCudnn, data_type
from tests.kernels.dispatch.ways import CPU, H200
from unit_fast.kernels.dispatch import candidates as candidates_module
from unit_fast.kernels.dispatch import cudnn_graph
from unit_fast.kernels.dispatch.candidates import Candidate, candidates_for
from unit_fast.kernels.dispatch.cudnn_graph import ACTIVATIONS, CudnnGraphs
from unit_fast.kernels.dispatch.dispatcher import Dispatcher
from unit_fast.kernels.dispatch.problem import Problem, complete
from unit_fast.kernels.dispatch.store import DispatchWarning, Store
from unit_fast.kernels.reference import conv2d_ref, linear_ref

NHWC = {"memory_format": torch.channels_last}
SHAPES = {"none": None, "tensor": (), "channel": (5, 1, 1), "neuron": (5, 4, 3)}
BOUNDS = ("none", "tensor", "channel")


@pytest.fixture(autouse=True)
def a_stream(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=7))
    cudnn_graph.installed.cache_clear()
    yield
    cudnn_graph.installed.cache_clear()


@pytest.fixture
def tf32(monkeypatch):
    monkeypatch.setattr(cudnn_graph, "dot_precision", lambda *_, **__: "tf32")


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def conv_args(bound="channel", dtype=torch.float16, act="relu", residual=True, **changes):
    """A strided, padded, dilated convolution of (2, 8, 8, 7) to (2, 5, 4, 3)."""
    shape = SHAPES[bound]
    given = {
        "x": draw(2, 8, 8, 7, dtype=dtype).contiguous(**NHWC),
        "weight": (0.1 * draw(5, 8, 3, 3)).to(dtype).contiguous(**NHWC),
        "bias": 8 * draw(5, dtype=dtype),  # beyond 6, for ReLU6
        "residual": draw(2, 5, 4, 3, dtype=dtype).contiguous(**NHWC) if residual else None,
        "bound": None if shape is None else draw(*shape).abs().to(dtype),
        "stride": (2, 2),
        "padding": (1, 1),
        "dilation": (1, 2),
        "groups": 1,
        "act": act,
        "act_args": (),
    }
    return tuple((given | changes).values())


def linear_args(bound=(), act="relu", dtype=torch.float16):
    x, weight, residual = draw(2, 3, 16, dtype=dtype), draw(5, 16, dtype=dtype), draw(2, 3, 5, dtype=dtype)
    return x, weight, draw(5, dtype=dtype), residual, draw(*bound).abs().to(dtype), act, ()


def wide(args):
    return [a.double() if isinstance(a, torch.Tensor) else a for a in args]


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("bound", BOUNDS)
def test_a_convolution_is_the_reference_in_one_graph(bound, act):
    cudnn = FakeCudnn()
    args = conv_args(bound, torch.float32, act)
    y = CudnnGraphs(cudnn).conv2d(*args)
    # The graph is evaluated in float64 and rounded once, so half an ulp is all that may differ.
    torch.testing.assert_close(y.double(), conv2d_ref(*wide(args)), rtol=2**-23, atol=1e-30)
    assert y.is_contiguous(**NHWC)
    (graph,) = cudnn.graphs
    own = {"identity": [], "relu6": ["relu"], "gelu_tanh": ["gelu_approx_tanh"], "silu": ["swish"]}.get(act, [act])
    assert graph.operations == ["conv", "add", "add", *own, *([] if bound == "none" else ["min"])]
    assert graph.options == {"padding": [1, 1], "stride": [2, 2], "dilation": [1, 2]}
    assert graph.inputs["x"].declared["stride"] == [8 * 8 * 7, 1, 7 * 8, 8]
    assert graph.inputs["weight"].declared["stride"] == [8 * 9, 1, 3 * 8, 8]
    assert graph.inputs["bias"].declared["dim"] == [1, 5, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_computed_in_float32_and_stored_as_they_are(dtype):
    cudnn = FakeCudnn()
    args = conv_args(dtype=dtype, residual=False)
    y = CudnnGraphs(cudnn).conv2d(*args)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), conv2d_ref(*wide(args)).to(dtype).double(), rtol=0, atol=0)
    settings = cudnn.graphs[0].settings
    assert settings["compute_data_type"] is settings["intermediate_data_type"] is data_type.FLOAT
    assert settings["io_data_type"].name == {torch.float16: "HALF", torch.bfloat16: "BFLOAT16"}[dtype]
    assert cudnn.graphs[0].operations == ["conv", "add", "relu", "min"]


def unaligned(tensor):
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
    return memory.view(tensor.shape).copy_(tensor)


def test_operands_that_lie_otherwise_are_copied_and_the_output_lies_as_the_references():
    x, weight, bias, residual, bound, *rest = conv_args()
    args = (
        unaligned(x.contiguous()),
        weight.contiguous(),
        unaligned(bias),
        residual.contiguous(),
        bound.float(),
        *rest,
    )
    y = CudnnGraphs(FakeCudnn()).conv2d(*args)  # the stand-in checks how each lies
    assert y.is_contiguous()
    torch.testing.assert_close(y, CudnnGraphs(FakeCudnn()).conv2d(x, weight, bias, residual, bound, *rest).contiguous())


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("bound", [(), (5,), (1, 5)], ids=str)
def test_a_linear_layer_is_the_reference_in_one_graph(bound):
    cudnn = FakeCudnn()
    args = linear_args(bound, "gelu", torch.float32)
    y = CudnnGraphs(cudnn).linear(*args)
    torch.testing.assert_close(y.double(), linear_ref(*wide(args)), rtol=2**-23, atol=1e-30)
    assert cudnn.graphs[0].operations == ["matmul", "add", "add", "gelu", "min"]
    assert cudnn.graphs[0].inputs["weight"].declared["stride"] == [5 * 16, 1, 16]


def test_a_plan_is_built_once_for_a_signature_and_run_on_the_current_stream():
    cudnn = FakeCudnn()
    graphs = CudnnGraphs(cudnn)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: graphs.conv2d(*conv_args()), range(8)))
    assert all(torch.equal(results[0], y) for y in results)
    assert (len(cudnn.graphs), cudnn.handles, cudnn.executions) == (1, 1, 8 + 1)  # and one with NaN
    assert set(cudnn.streams) == {7}
    others = {"bound": "tensor"}, {"act": "silu"}, {"residual": False}, {"dtype": torch.bfloat16}, {"dilation": (1, 2)}
    for changes in others:  # the last is none
        graphs.conv2d(*conv_args(**changes))
    assert len(cudnn.graphs) == 5


@pytest.mark.parametrize("bound", ["tensor", "channel"])
def test_where_the_minimum_loses_nan_the_bound_is_selected(bound):
    cudnn = FakeCudnn(min_drops_nan=True)
    x, *rest = conv_args(bound)
    x[0, 0, 1, 1] = torch.nan
    y = CudnnGraphs(cudnn).conv2d(x, *rest)
    torch.testing.assert_close(
        y.double(), conv2d_ref(*wide((x, *rest))).half().double(), equal_nan=True, rtol=0, atol=0
    )
    assert y.isnan().any()
    assert [graph.operations[-1] for graph in cudnn.graphs] == ["min", "select"]


@pytest.mark.parametrize(
    ("cudnn", "reason"),
    [
        (FakeCudnn(refuses=("conv",)), "min: No valid engine configs for .*; select: No valid"),
        (FakeCudnn(refuses=("select",), min_drops_nan=True), "min: NaN becomes a number; select: No valid"),
    ],
    ids=["nothing is fused", "only what loses NaN is"],
)
def test_what_no_engine_takes_is_refused_with_cudnns_reason(cudnn, reason):
    with pytest.raises(ValueError, match=f"cuDNN 9.10.2 has no engine for the whole graph .{reason}"):
        CudnnGraphs(cudnn).conv2d(*conv_args())


@pytest.mark.parametrize(
    ("operator", "args", "reason"),
    [
        ("conv2d", conv_args(act="hardswish"), "not built for activation 'hardswish'"),
        ("conv2d", conv_args(dtype=torch.float64), "torch.float64"),
        ("conv2d", conv_args(dtype=torch.float32), "TF32"),
        ("conv2d", conv_args(bound="neuron"), "alike in every position"),
        ("linear", linear_args((3, 5)), "alike in every row"),
    ],
    ids=["activation", "float64", "exact float32", "bound per neuron", "bound per row"],
)
def test_what_is_not_built_is_refused(monkeypatch, operator, args, reason):
    monkeypatch.setattr(cudnn_graph, "dot_precision", lambda *_, **__: "tf32x3")
    with pytest.raises((TypeError, ValueError), match=reason):
        getattr(CudnnGraphs(FakeCudnn()), operator)(*args)


def test_groups_are_refused():
    args = conv_args(bound="none", residual=False, bias=None, groups=2, weight=draw(4, 4, 3, 3, dtype=torch.float16))
    with pytest.raises(ValueError, match="one group only, got 2"):
        CudnnGraphs(FakeCudnn()).conv2d(*args)


def posed(operator="conv2d", args=None):
    return Problem.of(operator, complete(operator, args or conv_args()))


def offered(problem, environment=H200):
    return [c for c in candidates_for(problem, environment) if c.provider == "cudnn"]


def test_it_is_offered_where_cudnn_is_imported_with_its_version(monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", FakeCudnn())
    for problem in (posed(), posed("linear", linear_args())):
        (candidate,) = offered(problem)
        assert candidate.name == "cudnn graph 9.10.2"
        assert [c.provider for c in candidates_for(problem, H200)][-3:] == ["cudnn", "library", "reference"]
    assert not offered(posed("epilogue", (draw(3, 4, dtype=torch.float16),)))
    assert not offered(posed(), dataclasses.replace(H200, device="cpu"))


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("libcudnn.so: cannot open"), AttributeError("x")])
def test_where_cudnn_cannot_be_imported_nothing_is_offered_or_said(monkeypatch, error):
    def fails(_):
        raise error

    monkeypatch.setattr(cudnn_graph, "import_module", fails)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not offered(posed())


def test_saturation_is_counted_the_librarys_way(monkeypatch):
    cudnn = FakeCudnn()
    monkeypatch.setitem(sys.modules, "cudnn", cudnn)
    counts, seen = torch.zeros(2, dtype=torch.int32), []
    monkeypatch.setattr(candidates_module, "_then_epilogue", lambda *a, counts: seen.append(counts) or conv2d_ref(*a))
    (candidate,) = offered(posed())
    candidate.call(*conv_args(), counts=counts)
    assert seen == [counts]
    assert not cudnn.graphs
    candidate.call(*conv_args())
    assert len(cudnn.graphs) == 1


def chosen(cudnn, folder):
    """What a dispatcher that may use cuDNN's graph alone runs, on the CPU."""
    graphs = CudnnGraphs(cudnn)
    ways = [Candidate("cudnn graph", "cudnn", graphs.conv2d), candidates_for(posed(), H200)[-1]]
    dispatcher = Dispatcher(H200, CPU, Store(H200, folder, folder), None, "cudnn", lambda *_: ways)
    return dispatcher.choose("conv2d", conv_args())


def test_the_dispatcher_takes_it_when_it_agrees_and_drops_it_otherwise(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(FakeCudnn(), tmp_path).candidate.name == "cudnn graph"
        refused = chosen(FakeCudnn(refuses=("min", "select")), tmp_path)
    assert refused.candidate.name == "reference"
    assert "it cannot: cuDNN 9.10.2 has no engine" in refused.dropped["cudnn graph"]
    with pytest.warns(DispatchWarning, match="cudnn graph is not used .* wrong by up to"):
        assert chosen(FakeCudnn(error=1.1), tmp_path).candidate.name == "reference"
