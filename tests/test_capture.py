"""capture(): the plain graph computes what the module computes, for whatever modules do."""

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unit_fast as uf
from tests.networks import PlainVGG, SmallResNet, randomised
from unit_fast.capture import capture

aten = torch.ops.aten


def images(count: int, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def targets(graph) -> list:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("network", [SmallResNet, PlainVGG])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_equals_the_module_at_any_batch_size(network, batch):
    model = randomised(network())
    captured = capture(model, images(3))
    torch.testing.assert_close(captured(images(batch)), model(images(batch)), rtol=1e-5, atol=1e-5)


def test_one_sample_is_enough_of_an_example():
    model = randomised(SmallResNet())
    torch.testing.assert_close(capture(model, images(1))(images(5)), model(images(5)), rtol=1e-5, atol=1e-5)


def test_graph_is_functional_without_batch_norm_or_dropout():
    found = targets(capture(randomised(SmallResNet()), images(2)))
    assert not [target for target in found if target._schema.is_mutable]
    assert not [target for target in found if "norm" in str(target) or "dropout" in str(target)]
    assert found.count(aten.conv2d.default) == 5
    assert found.count(aten.relu.default) == 5


def test_the_model_stays_as_it_is():
    model = SmallResNet().train()
    model.dropout.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    captured = capture(model, images(2))
    assert model.training
    assert not model.dropout.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in captured.parameters())


def test_a_model_in_training_mode_is_captured_in_evaluation_mode():
    model = randomised(SmallResNet())
    expected = model(images(4))
    torch.testing.assert_close(capture(model.train(), images(2))(images(4)), expected, rtol=1e-5, atol=1e-5)


def test_weights_are_shared_where_nothing_was_folded():
    model = randomised(SmallResNet())
    captured = capture(model, images(2))
    assert captured.get_parameter("head.weight").data_ptr() == model.head.weight.data_ptr()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, a: Tensor, b: Tensor, scale: Tensor | None = None) -> dict[str, Tensor | list[Tensor]]:
        hidden = F.relu_(self.left(a)) + torch.relu(self.right(b))
        return {"logits": hidden if scale is None else hidden * scale, "features": [hidden, hidden.mean()]}


@pytest.mark.parametrize(
    ("example", "call"),
    [
        ((torch.ones(2, 4), torch.ones(2, 3)), lambda m, a, b, _: m(a, b)),
        ((torch.ones(2, 4), torch.ones(2, 3), torch.tensor(2.0)), lambda m, a, b, s: m(a, b, s)),
        (
            {"a": torch.ones(2, 4), "b": torch.ones(2, 3), "scale": torch.tensor(2.0)},
            lambda m, a, b, s: m(a=a, b=b, scale=s),
        ),
    ],
    ids=["positional", "positional with a scalar", "by name"],
)
def test_several_inputs_and_nested_outputs(example, call):
    model = TwoInputs().eval()
    captured = capture(model, example)
    a, b, s = torch.randn(5, 4), torch.randn(5, 3), torch.tensor(3.0)
    expected, found = call(model, a, b, s), call(captured, a, b, s)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found["logits"], expected["logits"])
    torch.testing.assert_close(found["features"], expected["features"])


def test_a_view_after_a_transpose_survives():
    class Shuffle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n, c, h, w = x.shape
            return F.relu(x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, -1))

    x = torch.randn(4, 6, 2, 2)
    captured = capture(Shuffle(), x[:2])
    torch.testing.assert_close(captured(x), Shuffle()(x))
    torch.testing.assert_close(captured(x.to(memory_format=torch.channels_last)), Shuffle()(x))


@torch.library.custom_op("unit_fast_tests::channels_last", mutates_args=())
def _channels_last(x: Tensor) -> Tensor:
    """In another layout than its fake says, as cuDNN's convolutions are."""
    return x.clone(memory_format=torch.channels_last)


_channels_last.register_fake(lambda x: x.clone(memory_format=torch.contiguous_format))


def test_a_view_holds_in_a_layout_that_the_trace_did_not_have():
    class Flattened(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(torch.flatten(_channels_last(x), 1))

    x = images(2)
    assert torch.equal(capture(Flattened(), x)(x), F.relu(x.flatten(1)))


def test_an_exported_program_is_taken_and_has_the_same_fingerprint():
    model = randomised(SmallResNet())
    program = torch.export.export(model, (images(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    captured = capture(program, images(2))
    torch.testing.assert_close(captured(images(5)), model(images(5)), rtol=1e-5, atol=1e-5)
    assert captured.meta["fingerprint"] == capture(model, images(2)).meta["fingerprint"]


def test_the_fingerprint_does_not_depend_on_the_layout_or_size_of_the_example():
    model = randomised(PlainVGG())
    expected = capture(model, images(2)).meta["fingerprint"]
    assert capture(model, images(5).to(memory_format=torch.channels_last)).meta["fingerprint"] == expected
    assert capture(model, images(1)).meta["fingerprint"] == expected


def test_no_grad_in_forward_does_not_hinder():
    class Frozen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return F.relu(x)

    assert aten.relu.default in targets(capture(Frozen(), images(2)))


def test_autocast_in_forward_is_part_of_the_graph():
    class Reduced(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    model = randomised(Reduced())
    captured = capture(model, images(2))
    assert captured(images(3)).dtype == model(images(3)).dtype == torch.bfloat16
    torch.testing.assert_close(captured(images(3)), model(images(3)))


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return F.relu(x)
        return x


class BranchOnData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.relu(x) * self.calls


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x.view(2, -1))


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + torch.randn_like(x))


class BranchOnBatch(nn.Module):
    """Doubles batches of which ``condition`` holds."""

    def __init__(self, condition: Callable[[int], bool]) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.relu(x) if self.condition(x.shape[0]) else F.relu(x)


class OneIsSpecial(nn.Module):
    """A single sample comes out a little larger."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) * (1.02 if x.shape[0] == 1 else 1.0)


class Forgetful(nn.Module):
    """Drops values whatever the mode, as F.dropout does by default."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(x))


class Cond(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda t: F.relu(t), lambda t: -t, (x,))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (BranchOnData(), r"in inner \(Inner\), at `if x.sum\(\) > 0:`"),
        (Counter(), r"aten.copy_.default.*changes calls while the model runs"),
        (FixedBatch(), r"fixes the batch size of example_input to 2"),
        (Noisy(), r"aten.randn_like.default in the model itself draws random numbers"),
        (BranchOnBatch(lambda n: n > 16), r"other batch sizes.*only where x.shape\[0\] <= 16; a graph has no branches"),
        (BranchOnBatch(lambda n: n % 2 == 0), r"only where \(x.shape\[0\] % 2\) == 0"),
        (BranchOnBatch(lambda n: n == 7), r"only where x.shape\[0\] != 7"),
        (BranchOnBatch(lambda n: n == 1), r"something else for a single sample"),
        (OneIsSpecial(), r"something else for a single sample"),
        (Forgetful(), r"dropout.default in the model itself is in training mode.*pass training=self.training"),
        (Cond(), r"operator cond .*graph of its own"),
        (SmallResNet().stem.weight, r"is a Parameter; expected a torch.nn.Module"),
        (torch.jit.script(PlainVGG()), r"RecursiveScriptModule, which torch.export does not take"),
        (
            nn.Sequential(nn.Identity(), torch.ao.nn.quantized.Conv2d(3, 4, 1)),
            r"1 is a Conv2d, which is quantised; pass the model as it was before, in float32",
        ),
    ],
    ids=[
        "branch on data",
        "state that changes",
        "fixed batch",
        "noise",
        "batch above 16",
        "even batch",
        "batch of 7",
        "batch of 1",
        "batch of 1, a little",
        "dropout left on",
        "cond",
        "no module",
        "scripted",
        "quantised",
    ],
)
def test_what_has_no_plain_graph_is_named(model, message):
    with pytest.raises(uf.CaptureError, match=message):
        capture(model, images(2))


def test_where_float32_is_multiplied_as_tf32_single_samples_may_differ_by_that(monkeypatch):
    monkeypatch.setattr("unit_fast.capture.least_precise", lambda *_: torch.float16)  # as on CUDA
    capture(OneIsSpecial(), torch.rand(2, 3))  # refused above


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.LSTM(24, 6, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 8, 8) -> (N, 3)
        y, _ = self.rows(x.transpose(1, 2).flatten(2))
        return self.head(F.relu(y[:, -1]))


def test_layers_that_are_random_only_while_they_train_are_taken():
    model = Recurrent().eval()
    captured = capture(model, images(2))
    torch.testing.assert_close(captured(images(5)), model(images(5)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_torch_fuses_when_it_runs_eagerly_may_round_otherwise(dtype):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 3).to(dtype).eval(), torch.randn(2, 10, 32, dtype=dtype)
    capture(model, x)


class Weighted(nn.Module):
    """Its second input has a row for every channel."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return F.relu(x * weights.view(1, 3, 1, 1))


def test_an_input_that_has_as_many_rows_as_samples_by_chance_is_named():
    weights = torch.rand(3)
    with pytest.raises(uf.CaptureError, match=r"no batch, pass an example of another batch size, such as 4"):
        capture(Weighted(), (images(3), weights))

    captured = capture(Weighted(), (images(4), weights))
    torch.testing.assert_close(captured(images(3), weights), Weighted()(images(3), weights))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.randn(2, 4, 8, 8), r"does not run on example_input: in stem \(Conv2d\)"),
        (torch.randn(0, 3, 8, 8), r"batch dimension is 0"),
        ("image.png", r"example_input is a str"),
        ((3, 4), r"no tensor with a batch dimension"),
        ({"image": images(2)}, r"keyword argument 'image'.* put it into a tuple, \(\{...\},\)"),
    ],
    ids=["channels", "no sample", "string", "no tensor", "dict"],
)
def test_bad_examples_are_refused(example, message):
    with pytest.raises(uf.CaptureError, match=message):
        capture(SmallResNet(), example)


def test_a_program_in_training_mode_is_refused():
    program = torch.export.export(SmallResNet().train(), (images(2),))
    with pytest.raises(uf.CaptureError, match=r"training mode|changes .* while"):
        capture(program, images(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_a_graph_that_is_converted_asks_for_no_other_dtype(dtype):
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x.to(self.linear.weight.dtype))

    captured = capture(Moving(), torch.ones(2, 3))
    expected = captured(torch.ones(2, 3))
    torch.testing.assert_close(
        captured.to(dtype)(torch.ones(2, 3, dtype=dtype)).float(), expected, rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["torch.compile", "DataParallel"])
def test_wrappers_are_looked_through(wrap):
    model = randomised(SmallResNet())
    wrapped = wrap(model)
    x = images(2).to(model.head.weight.device)  # DataParallel takes a model to the GPU where there is one
    assert capture(wrapped, x).meta["fingerprint"] == capture(model, x).meta["fingerprint"]


def test_threads_may_capture_one_model_at_once():
    model = randomised(SmallResNet()).train()
    model.requires_grad_(False)
    found, errors = [], []

    def work() -> None:
        try:
            found.append(capture(model, images(2)).meta["fingerprint"])
        except Exception as error:  # noqa: BLE001 - whatever a thread raises fails the test
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(found) == 4
    assert len({fingerprint.sha256 for fingerprint in found}) == 1
    assert model.training
