"""``sanitize`` on a GPU: kernels, CUDA graphs, streams and threads for real. All of it skips where there is none."""

import copy
import threading

import pytest
import torch

import unit_fast as uf
from tests.export.models import made_bounds, make
from unit_fast.kernels.dispatch import dispatcher_for

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

NAMES = ("resnet", "vgg", "dense", "mobilenet", "vit")
TOLERANCES = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float32: 1e-3}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    """Measurements of tiny networks are not left in the user's cache; one folder serves all tests."""
    monkeypatch.setenv("UNIT_FAST_CACHE", str(tmp_path_factory.getbasetemp() / "unit_fast"))


@pytest.fixture(autouse=True)
def _full_float32():
    """torch lets cuDNN multiply float32 as TF32 unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def sanitized(name, dtype=torch.float16, backend="triton", granularity="neuron"):
    """The model by ``backend`` on the GPU, its eager twin there, and an input."""
    model, x = make(name)
    bounds = made_bounds(name, granularity)
    model, x = model.cuda(), x.cuda()
    fast = uf.sanitize(model, bounds, x, backend=backend, dtype=dtype)
    return fast, uf.sanitize(model, bounds, x, backend="eager"), x


def close(output, expected, dtype=torch.float16):
    error = (output.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= TOLERANCES[dtype]


@pytest.mark.parametrize(
    ("name", "dtype", "backend"),
    [
        *((name, dtype, "triton") for name in NAMES for dtype in TOLERANCES),
        *((name, torch.float16, "compile") for name in ("resnet", "vit")),
    ],
)
def test_output_is_that_of_the_sanitised_graph_at_every_batch_size(name, dtype, backend):
    fast, eager, x = sanitized(name, dtype, backend)
    fast.warmup([1, 8])
    for size in (1, 2, 5, 8, 11):  # captured, padded, captured, launched
        batch = torch.randn(size, *x.shape[1:], device="cuda")
        output = fast(batch)
        assert output.dtype == dtype
        assert output.shape[0] == size
        close(output, eager(batch), dtype)


def test_auto_measures_the_kernels_against_torch_compile_and_the_next_process_remembers():
    fast, eager, x = sanitized("resnet", backend="auto")
    assert fast.backend == "auto"
    fast.warmup([8], monitor=True)
    assert " ms against " in fast.explain()
    close(fast(x), eager(x))
    fast.monitor(x)
    fast.inspect(x)
    again, _, _ = sanitized("resnet", backend="auto")
    again.warmup([8])
    assert "as measured before" in again.explain()
    assert set(again._runner()._made) == {again._runner()._choices[8].name}
    close(again(x), eager(x))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_other_granularities(granularity):
    fast, eager, x = sanitized("resnet", granularity=granularity)
    close(fast.warmup([len(x)])(x), eager(x))


@pytest.mark.parametrize("name", NAMES)
def test_monitor_counts_as_the_sanitised_graph_does(name):
    fast, eager, x = sanitized(name, torch.float32)
    fast.warmup([4], monitor=True)
    batch = torch.randn(4, *x.shape[1:], device="cuda")
    (output, share), (expected, expected_share) = fast.monitor(batch), eager.monitor(batch)
    close(output, expected, torch.float32)
    assert expected_share.max() > 0
    torch.testing.assert_close(share, expected_share, rtol=0.02, atol=0.01)  # rounding moves a value across its bound


def test_nothing_is_compiled_or_measured_after_warmup(monkeypatch):
    fast, _, x = sanitized("resnet")
    fast.warmup([4])
    fast(x[:1].expand(4, -1, -1, -1))
    from triton.runtime.jit import JITFunction

    from unit_fast.kernels.dispatch import dispatcher

    def refused(*_args, **_kwargs):
        raise AssertionError("compiled or measured after warmup()")

    monkeypatch.setattr(JITFunction, "_do_compile", refused)
    monkeypatch.setattr(dispatcher.Dispatcher, "_measured", refused)
    for size in (4, 3, 2):
        fast(torch.randn(size, *x.shape[1:], device="cuda"))


def test_outputs_are_the_caller_s_own():
    fast, eager, x = sanitized("resnet")
    fast.warmup([2])
    first, second = (torch.randn(2, *x.shape[1:], device="cuda") for _ in range(2))
    kept = fast(first)
    fast(second)
    close(kept, eager(first))


def test_inputs_are_read_before_the_call_returns_them():
    """What is written to an input after the call, on the same stream, changes nothing."""
    fast, eager, x = sanitized("resnet")
    fast.warmup([2])
    given = torch.randn(2, *x.shape[1:], device="cuda")
    expected = eager(given)
    output = fast(given)
    given.zero_()
    close(output, expected)


def test_streams_of_several_threads():
    fast, eager, x = sanitized("resnet")
    fast.warmup([4])
    batches = [torch.randn(4, *x.shape[1:], device="cuda") for _ in range(4)]
    expected = [eager(batch) for batch in batches]
    torch.cuda.synchronize()
    wrong = []

    def serve(batch, right):
        with torch.cuda.stream(torch.cuda.Stream()):
            outputs = [fast(batch) for _ in range(50)]
            torch.cuda.current_stream().synchronize()
        wrong.extend(output for output in outputs if (output.float() - right).abs().max() > 2e-2 * right.abs().max())

    threads = [threading.Thread(target=serve, args=pair) for pair in zip(batches, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_warmup_it_runs_too():
    fast, eager, x = sanitized("mobilenet")
    close(fast(x), eager(x))


def test_inside_a_graph_of_the_caller_s_own():
    fast, eager, x = sanitized("resnet")
    fast.warmup([len(x)])
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        fast(x)
        with torch.cuda.graph(graph, stream=stream):
            output = fast(x)
    graph.replay()
    torch.cuda.synchronize()
    close(output, eager(x))


@torch.inference_mode()
def test_inference_mode():
    fast, eager, x = sanitized("resnet")
    close(fast.warmup([len(x)])(x), eager(x))


def test_inside_torch_compile():
    fast, eager, x = sanitized("resnet")
    close(torch.compile(lambda batch: fast(batch) * 2)(x), eager(x) * 2)


def test_deepcopy_and_half():
    fast, eager, x = sanitized("resnet", torch.float32)
    twin = copy.deepcopy(fast).half()
    close(twin(x.half()), eager(x))
    close(fast(x), eager(x), torch.float32)


def test_to_the_cpu_and_back():
    fast, eager, x = sanitized("resnet", None, "auto")
    expected = eager(x)
    fast.cpu()
    close(fast(x.cpu()), expected.cpu(), torch.float32)
    close(fast.cuda()(x), expected, torch.float32)


def test_state_dict_round_trip():
    fast, eager, x = sanitized("resnet", None)
    fast.warmup([len(x)])
    state = {name: tensor.clone() for name, tensor in fast.state_dict().items()}
    weight = next(name for name, tensor in state.items() if tensor.dim() == 4)
    fast.load_state_dict(state | {weight: torch.zeros_like(state[weight])})
    with pytest.raises(AssertionError):
        close(fast(x), eager(x), torch.float32)
    fast.load_state_dict(state)
    close(fast(x), eager(x), torch.float32)


def test_inputs_of_any_layout():
    fast, eager, x = sanitized("resnet")
    fast.warmup([len(x)])
    for given in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        close(fast(given), eager(x))


def test_an_empty_batch():
    fast, _, x = sanitized("resnet")
    fast.warmup([2])
    assert fast(x[:0]).shape[0] == 0


@pytest.mark.parametrize("backend", ["compile", "eager"])
def test_the_other_backends(backend):
    fast, eager, x = sanitized("resnet", torch.float16, backend)
    close(fast(x), eager(x))


def test_every_site_says_what_runs_it():
    fast, _, x = sanitized("resnet")
    fast.warmup([1, len(x)])
    told = fast.explain()
    assert "µs" in told
    assert dispatcher_for(torch.device("cuda")).describe()["measured here"]
