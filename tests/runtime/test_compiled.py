"""The "compile" backend: the reference's numbers at every batch size, compiled once or twice for all of them."""

import threading
import warnings

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache, run_and_get_code

import unit_fast as uf
from tests.runtime.networks import Nested, OneConv, bounds_of, images, needs_compiler
from unit_fast.errors import FallbackWarning
from unit_fast.runtime import compiled

pytestmark = [needs_compiler, pytest.mark.slow]


@pytest.fixture(scope="module")
def model():
    return OneConv().eval()


@pytest.fixture(scope="module")
def bounds(model):
    return bounds_of(model, images(2))


@pytest.fixture(scope="module")
def fast(model, bounds):
    return uf.sanitize(model, bounds, images(1), backend="compile").warmup([1, 3, 20], monitor=True)


@pytest.fixture(scope="module")
def eager(model, bounds):
    return uf.sanitize(model, bounds, images(1), backend="eager")


@pytest.fixture
def compilations(monkeypatch):
    """The batch sizes compiled for in the test."""
    seen: list[int] = []
    original = compiled.CompiledGraph._compile

    def counted(self, key, inputs, batch, dynamic):
        seen.append(batch)
        return original(self, key, inputs, batch, dynamic)

    monkeypatch.setattr(compiled.CompiledGraph, "_compile", counted)
    return seen


def agree(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_after_three_sizes_all_others_run_what_is_compiled(fast, eager, compilations):
    for batch in (*range(1, 24), 64, 100):
        agree(fast(images(batch)), eager(images(batch)))
    assert compilations == []


def test_after_inspection_was_warmed_up_these_sizes_have_code_of_their_own(model, bounds, eager, compilations):
    fast = uf.sanitize(model, bounds, images(1), backend="compile").warmup([1, 3], inspect=True)
    compilations.clear()
    for batch in (1, 3):
        agree(fast.inspect(images(batch))[0], eager(images(batch)))
    assert compilations == []
    assert fast._runner()._inspecting().compiled_for.startswith("batch 1, 3,")


def test_no_mode_of_the_caller_compiles_again(fast, eager, compilations):
    expected = eager(images(3))
    with torch.inference_mode():
        agree(fast(images(3)), expected)
    with torch.no_grad():
        agree(fast(images(3)), expected)
    agree(fast(images(3).requires_grad_()), expected)
    agree(fast(x=images(3)), expected)
    assert compilations == []


@pytest.mark.parametrize(
    "laid_out",
    [
        pytest.param(lambda x: x.to(memory_format=torch.channels_last), id="channels_last"),
        pytest.param(lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), id="transposed"),
        pytest.param(lambda x: x[:, :1].expand(-1, 3, -1, -1), id="expanded"),
        pytest.param(lambda x: torch.cat([x, x], 3)[..., 8:], id="a slice that starts inside"),
    ],
)
def test_inputs_of_any_layout(fast, eager, compilations, laid_out):
    x = laid_out(images(4))
    assert not x.is_contiguous()
    agree(fast(x), eager(x.contiguous()))
    assert compilations == []


def test_an_empty_batch_gives_an_empty_result(fast):
    assert fast(images(0)).shape == (0, 5)
    output, counts = fast._runner().monitor(images(0))
    assert output.shape == (0, 5)
    assert counts.shape == (0, 1)
    output, measures = fast.inspect(images(0))
    assert output.shape == (0, 5)
    assert all(values.shape == (0,) for values in measures.values())


def test_counts_are_those_of_the_reference(fast, eager, bounds):
    x = images(6)
    output, counts = fast._runner().monitor(x)
    weight, bias = (eager.graph_module.get_parameter(f"conv.{name}") for name in ("weight", "bias"))
    activation = torch.relu(torch.conv2d(x, weight, bias, padding=1))
    assert counts.tolist() == (activation > bounds["relu"]).sum((1, 2, 3)).unsqueeze(1).tolist()
    assert counts.min() > 0
    agree(output, fast(x))


def test_inspection_gives_the_largest_excess(fast, eager, bounds):
    x = images(6)
    output, counts, excess = fast._runner().inspect(x)
    weight, bias = (eager.graph_module.get_parameter(f"conv.{name}") for name in ("weight", "bias"))
    activation = torch.relu(torch.conv2d(x, weight, bias, padding=1))
    agree(excess[:, 0], (activation - bounds["relu"]).amax((1, 2, 3)).clamp(min=0))
    agree(output, fast(x))
    assert counts.shape == (6, 1)


def test_changed_weights_are_compiled_anew(model, bounds, compilations):
    fast = uf.sanitize(OneConv().eval(), bounds, images(1), backend="compile").warmup([1])
    with torch.no_grad():
        fast.graph_module.get_parameter("head.weight").zero_()
    agree(fast(images(1)), model.head.bias.expand(1, -1))
    fast.load_state_dict({name: tensor * 0 for name, tensor in fast.state_dict().items()})
    assert fast(images(1)).abs().max() == 0
    assert compilations == [1, 1, 1]


def test_threads_may_call_while_another_compiles(fast, eager, model, bounds):
    expected = eager(images(3))
    stop, wrong = threading.Event(), []

    def serve() -> None:
        while not stop.is_set():
            try:
                if not torch.allclose(fast(images(3)), expected, atol=1e-5):
                    wrong.append("other numbers")
            except Exception as error:  # noqa: BLE001 - the test fails by what is in the list
                wrong.append(repr(error))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        uf.sanitize(model, bounds, images(1), backend="compile").warmup([1])
    finally:
        stop.set()
        thread.join()
    assert wrong == []


def test_several_threads_meet_a_new_size_at_once(model, bounds, eager, compilations):
    fast = uf.sanitize(model, bounds, images(1), backend="compile")
    results: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda size=size: results.update({size: fast(images(size))})) for size in (2, 3, 4, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compilations) == 1
    for size, result in results.items():
        agree(result, eager(images(size)))


def test_what_disagrees_with_the_reference_is_not_served(model, bounds, monkeypatch):
    original = compiled.CompiledGraph._compile

    def broken(self, key, inputs, batch, dynamic):
        variant = original(self, key, inputs, batch, dynamic)
        return compiled._Variant(lambda *x: [y + 0.01 for y in variant.function(*x)], key, None, (), "1")

    monkeypatch.setattr(compiled.CompiledGraph, "_compile", broken)
    fast = uf.sanitize(model, bounds, images(1), backend="compile")
    with pytest.raises(uf.ParityError, match=r"at batch 1: output 0 is off by .* of its largest value"):
        fast(images(1))


def test_a_compiler_that_fails_is_named(model, bounds, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(compiled.torch._inductor, "compile", fails)
    fast = uf.sanitize(model, bounds, images(1), backend="compile")
    with pytest.raises(uf.BackendUnavailableError, match=r"cannot compile .*no such instruction.*eager"):
        fast(images(1))


def test_where_kernels_cannot_be_called_from_cpp_python_calls_them_and_it_is_said(model, bounds, eager, monkeypatch):
    original, asked = compiled.torch._inductor.compile, []

    def python_only(module, inputs, options):
        asked.append(options.get("cpp_wrapper", False))
        if asked[-1]:
            raise NotImplementedError("no such operator in C++")
        return original(module, inputs, options)

    monkeypatch.setattr(compiled.torch._inductor, "compile", python_only)
    fast = uf.sanitize(model, bounds, images(1), backend="compile")
    with pytest.warns(FallbackWarning, match=r"called from Python, which is slower: .* no such operator in C\+\+"):
        agree(fast(images(1)), eager(images(1)))
    assert asked == [True, False]


def test_kernels_are_called_from_cpp_in_code_for_one_size_as_in_that_for_all(model, bounds, monkeypatch):
    original, sources = compiled.torch._inductor.compile, []

    def observed(module, inputs, options):
        function, code = run_and_get_code(lambda: original(module, inputs, options))
        sources.extend(code)
        return function

    monkeypatch.setattr(compiled.torch._inductor, "compile", observed)
    with fresh_cache():
        uf.sanitize(model, bounds, images(1), backend="compile").warmup([1, 3])
    assert len(sources) == 3  # one sample; 2 to 15; 3
    assert all("inductor_entry_impl" in source for source in sources)
    assert [source.count("int64_t s") > 0 for source in sources] == [False, True, False]


def test_nested_signatures_are_kept():
    model = Nested().eval()
    pair, mask = (torch.randn(3, 4), torch.randn(3, 4)), torch.rand(3, 6)
    bounds = bounds_of(model, {"pair": pair, "scale": 2.0, "mask": mask})
    fast = uf.sanitize(model, bounds, {"pair": pair, "scale": 2.0, "mask": mask}, backend="compile")
    eager = uf.sanitize(model, bounds, {"pair": pair, "scale": 2.0, "mask": mask}, backend="eager")
    actual, expected = (run(pair=pair, scale=2.0, mask=mask) for run in (fast, eager))
    agree(actual["sum"], expected["sum"])
    agree(actual["parts"][0], expected["parts"][0])
    agree(actual["parts"][1][0], expected["parts"][1][0])
    assert isinstance(actual["parts"][1], tuple)
    assert actual["parts"][1][1] is None
    assert (expected["sum"] - model(pair, 2.0, mask=mask)["sum"]).abs().max() > 1e-2


def test_a_request_with_nan_is_answered_and_decides_nothing(fast, eager):
    x = images(9)
    x[2] = torch.nan  # oneDNN's ReLU makes 0 of NaN where eager keeps it
    fast._runner()._output._known.clear()
    others = torch.arange(9) != 2
    agree(fast(x)[others], eager(x)[others])
    assert eager(x)[2].isnan().all()
    assert not fast._runner()._output._known
    fast(images(9))
    assert fast._runner()._output._known


def test_inputs_that_do_not_fit_fail_in_the_models_own_words(fast):
    with pytest.raises((ValueError, RuntimeError), match=r"3, 5, 8, 8|5 channels"):
        fast(torch.randn(3, 5, 8, 8))


def test_explain_says_what_is_compiled(fast):
    assert "compiled for batch 1, 3, 20, 2 to 15, 16 and more" in fast.explain()


def test_after_the_last_compilation_further_kinds_run_eagerly_with_a_warning(model, monkeypatch):
    bounds = bounds_of(model, images(2), "channel")
    monkeypatch.setattr(compiled, "MOST_COMPILATIONS", 1)
    fast = uf.sanitize(model, bounds, images(1), backend="compile")
    eager = uf.sanitize(model, bounds, images(1), backend="eager")
    fast(images(1))
    with pytest.warns(FallbackWarning, match=r"shapes \[\(2, 3, 8, 8\)\] run eagerly.*compiled for 1 kinds"):
        assert torch.equal(fast(images(2)), eager(images(2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fast(images(2) * 2), eager(images(2) * 2))


class ConvsOnly(torch.nn.Module):
    """Without a linear layer, whose packed weights keep it out of Inductor's cache on disk."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)))


def test_other_bounds_are_not_those_that_the_cache_on_disk_holds():
    model, calm, driven = ConvsOnly().eval(), 1e-3 * images(3), 50 * images(3)
    with fresh_cache():
        for most in (100.0, 0.5):
            bounds = bounds_of(model, images(2), "tensor", most)
            fast = uf.sanitize(model, bounds, images(3), backend="compile")
            fast(calm)  # what the first call is compared by, and no bound binds
            agree(fast(driven), uf.sanitize(model, bounds, images(3), backend="eager")(driven))
