"""The entry: what every method shares."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.networks import PlainVGG, SmallResNet, randomised
from unit_fast.bounds import Bounds
from unit_fast.calibration import CalibrationContext, Maximum, MeanStd, Method, Percentile, calibrate
from unit_fast.errors import CaptureError, DataError, UnitFastError
from unit_fast.sites import insert_bounds

X = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 5


def network(kind: type[nn.Module] = PlainVGG) -> nn.Module:
    """The same weights at every call, whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(kind())


def loader(x: Any = X, y: Tensor | None = Y, size: int = 16) -> Iterator[tuple[Any, Any]]:
    for start in range(0, len(x), size):
        yield x[start : start + size], None if y is None else y[start : start + size]


@dataclass(frozen=True)
class Everything(Method):
    """Bounds that cut everything off, and a look at the context."""

    level: float = 0.0
    seen: Any = None

    def settings(self) -> dict[str, Any]:
        return {"level": self.level}

    def fit(self, context: CalibrationContext) -> dict[str, Tensor]:
        if self.seen is not None:
            self.seen.append(context)
        context.notes["remark"] = "seen"
        return {
            site.name: torch.full((), self.level, device=context.device, dtype=torch.float64) for site in context.sites
        }


def test_metadata_say_what_was_done() -> None:
    bounds = calibrate(network(), loader(), Everything(0.25), "tensor", seed=7)
    metadata = dict(bounds.metadata)
    assert metadata.pop("versions")["torch"] == torch.__version__
    accuracy = metadata.pop("accuracy")
    assert metadata == {
        "method": "everything",
        "settings": {"level": 0.25},
        "seed": 7,
        "samples": {"fit": 45, "validation": 15, "classes": 5, "labels": "given"},
        "remark": "seen",
        "without_bounds": [],
    }
    assert set(accuracy) == {"fit_before", "fit_after", "validation_before", "validation_after"}
    assert bounds.granularity == "tensor"
    assert all(bound.dtype == torch.float32 and bound == 0.25 for bound in bounds.values())


def test_accuracies_are_those_of_the_model_with_and_without_the_bounds() -> None:
    model = network()
    with torch.no_grad():
        labels = model(X).argmax(1)
    labels = torch.where(torch.arange(60) % 4 == 0, (labels + 1) % 5, labels)
    contexts: list[CalibrationContext] = []
    bounds = calibrate(model, loader(y=labels), Everything(0.1, contexts), "tensor")
    # An independent sanitised model: clamps by hooks on the user's own.
    for module in model.modules():
        if isinstance(module, nn.ELU):
            module.register_forward_hook(lambda _module, _input, output: output.clamp(max=0.1))
    with torch.no_grad():
        after = model(X).argmax(1) == labels
    for part, rows in (("fit", contexts[0].fit_indices), ("validation", contexts[0].validation_indices)):
        before = (torch.arange(60) % 4 != 0)[rows]
        assert bounds.metadata["accuracy"][f"{part}_before"] == pytest.approx(float(before.double().mean()))
        assert bounds.metadata["accuracy"][f"{part}_after"] == pytest.approx(float(after[rows].double().mean()))
    assert not after.all()


def test_without_labels_the_models_own_predictions_are_the_labels() -> None:
    model = network()
    contexts: list[CalibrationContext] = []
    with torch.no_grad():
        model.classifier.bias -= model(X).mean(0)  # a network that nobody trained says one class else
        expected = model(X).argmax(1)
    keep = torch.isin(expected, torch.tensor([c for c in range(5) if (expected == c).sum() > 1]))
    assert len(expected[keep].unique()) > 1
    bounds = calibrate(model, loader(X[keep], None), Everything(0.0, contexts), "tensor")
    assert bounds.metadata["samples"]["labels"] == "predicted by the model"
    assert bounds.metadata["accuracy"]["validation_before"] == 1.0
    assert torch.equal(contexts[0].samples.labels, expected[keep])


def test_a_model_that_says_one_class_only_cannot_label_its_samples() -> None:
    with pytest.raises(DataError, match=r"the model gives all 60 calibration samples the class \d; give labels"):
        calibrate(network(), loader(y=None), MeanStd())


def test_the_model_is_left_as_it_was() -> None:
    model = network()
    model.train()
    model.features[2].eval()
    model.classifier.weight.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    calibrate(model, loader(), MeanStd())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_training_mode_and_gradient_modes_do_not_matter() -> None:
    model = network()
    plain = calibrate(model, loader(), MeanStd())
    with torch.inference_mode():
        inference = calibrate(model, loader(), MeanStd())
    training = calibrate(model.train(), loader(), MeanStd())
    for name, bound in plain.items():
        assert torch.equal(bound, inference[name])
        assert torch.equal(bound, training[name])


def test_methods_may_take_gradients_wherever_they_are_called() -> None:
    @dataclass(frozen=True)
    class TakesGradients(Method):
        def fit(self, context: CalibrationContext) -> dict[str, Tensor]:
            level = torch.ones((), requires_grad=True)
            batch = next(context.samples.batches(context.fit_indices, 4))
            bounds = {site.name: level for site in context.sites}
            (batch.x.sum() * level).backward()
            assert level.grad is not None
            return bounds

    with torch.no_grad():
        bounds = calibrate(network(), loader(), TakesGradients(), "tensor")
    assert not any(bound.requires_grad for bound in bounds.values())


@pytest.mark.parametrize("method", [MeanStd(), Percentile(0.9, capacity=64), Maximum()], ids=lambda method: method.name)
def test_the_same_seed_gives_the_same_bounds(method: Method) -> None:
    model = network()
    first = calibrate(model, loader(), method, "channel", seed=1)
    torch.rand(3)
    again = calibrate(model, loader(), method, "channel", seed=1)
    other = calibrate(model, loader(), method, "channel", seed=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert first.metadata == again.metadata


def test_global_random_state_is_not_touched() -> None:
    model = network()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    calibrate(model, loader(), Percentile(0.9, capacity=64))
    assert torch.equal(torch.rand(1), expected)


def test_bounds_can_be_saved_and_loaded(tmp_path: Any) -> None:
    bounds = calibrate(network(SmallResNet), loader(), MeanStd(), "channel")
    loaded = Bounds.load(bounds.save(tmp_path / "bounds.safetensors"))
    assert loaded.metadata == bounds.metadata
    for name, bound in bounds.items():
        assert torch.equal(loaded[name], bound)
        assert torch.equal(loaded.clean[name].counts, bounds.clean[name].counts)


def test_clean_activations_are_recorded() -> None:
    model = network()
    found: list[Tensor] = []
    bounds = calibrate(model, loader(), Maximum(), "channel")
    model.features[2].register_forward_hook(lambda _module, _input, output: found.append(output))
    with torch.no_grad():
        model(X)
    clean = bounds.clean["features.2"]
    torch.testing.assert_close(clean.maximum, found[0].amax((0, 2, 3)).reshape(8, 1, 1))
    assert int(clean.counts.sum()) == found[0].numel()  # few enough to count all
    assert float(clean.edges[0]) <= float(found[0].min()) + 1e-5
    assert float(clean.edges[-1]) >= float(found[0].max()) - 1e-5


def test_filters_choose_the_sites() -> None:
    bounds = calibrate(network(), loader(), MeanStd(), exclude="features.2")
    assert list(bounds) == ["features.6"]
    assert bounds.metadata["without_bounds"] == ["features.2"]
    with pytest.raises(CaptureError, match="leave no site"):
        calibrate(network(), loader(), MeanStd(), include="nowhere")


class TwoInputs(nn.Module):
    """Scores from an image and a vector, in a dict beside something else."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(12, 6)
        self.vector = nn.Linear(4, 6)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.image(image.flatten(1)) + self.vector(vector))
        return {"scores": hidden[:, :5], "hidden": hidden}


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_several_inputs_and_outputs(form: str) -> None:
    image, vector = torch.randn(40, 3, 4), torch.randn(40, 4)
    y = torch.arange(40) % 5
    batch = (image, vector) if form == "tuple" else {"vector": vector, "image": image}
    model = TwoInputs()
    bounds = calibrate(model, [(batch, y)], Maximum(), logits=lambda output: output["scores"])
    assert bounds["relu"].shape == (6,)
    with pytest.raises(DataError, match="returns a dict with scores, hidden"):
        calibrate(model, [(batch, y)], Maximum())
    with pytest.raises(DataError, match=r"at least 2 classes, got \(40,\)"):
        calibrate(model, [(batch, y)], Maximum(), logits=lambda output: output["scores"][:, 0])


def test_an_exported_program_is_taken() -> None:
    model = network()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (X[:4],), dynamic_shapes=({0: batch},))
    expected = calibrate(model, loader(), MeanStd(), "channel")
    found = calibrate(program, loader(), MeanStd(), "channel")
    for name, bound in expected.items():
        torch.testing.assert_close(found[name], bound)


def test_float64_samples_suit_a_float32_model_and_float32_ones_a_float64_model() -> None:
    expected = calibrate(network(), loader(), MeanStd())
    found = calibrate(network(), loader(X.double()), MeanStd())
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    double = calibrate(network().double(), loader(), MeanStd())
    for name, bound in expected.items():
        torch.testing.assert_close(double[name], bound, rtol=1e-4, atol=1e-4)


def test_a_half_precision_model_is_calibrated_in_its_precision() -> None:
    bounds = calibrate(network().bfloat16(), loader(), Maximum(), "channel")
    assert torch.equal(bounds["features.2"], bounds["features.2"].bfloat16().float())


def test_an_example_may_be_given() -> None:
    expected = calibrate(network(), loader(), MeanStd())
    found = calibrate(network(), loader(), MeanStd(), example_input=(X[:1],))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_images_of_another_size_than_the_example_are_refused() -> None:
    with pytest.raises(DataError, match=r"have the shape \(3, 8, 8\), example_input's have \(3, 9, 9\)"):
        calibrate(network(), loader(), MeanStd(), example_input=torch.randn(2, 3, 9, 9))


def test_images_that_the_model_does_not_take_are_refused() -> None:
    with pytest.raises(DataError, match=r"samples of shape \(3, 12, 12\) \(torch.float32\): .*size and dtype"):
        calibrate(network(), loader(torch.randn(60, 3, 12, 12)), MeanStd())


def test_bytes_for_a_floating_model_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(torch.uint8\)"):
        calibrate(network(), loader((X.abs() * 50).to(torch.uint8)), MeanStd())


def test_images_of_another_size_than_a_program_takes_are_refused() -> None:
    program = torch.export.export(PlainVGG().eval(), (X[:4],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with pytest.raises(DataError, match=r"does not run on the calibration samples \(x \(3, 12, 12\)\)"):
        calibrate(program, loader(torch.randn(60, 3, 12, 12)), MeanStd())


def test_a_model_that_cannot_be_captured_stays_a_capture_error() -> None:
    class Branches(PlainVGG):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    with pytest.raises(CaptureError):
        calibrate(Branches(), loader(), MeanStd())


def test_labels_beyond_the_models_classes_are_refused() -> None:
    labels = Y.clone()
    labels[17] = 5
    with pytest.raises(DataError, match="batch 1, sample 1: label 5 is out of range, the model has 5 classes"):
        calibrate(network(), loader(y=labels), MeanStd())


def test_broken_activations_name_site_count_and_sample() -> None:
    model = network()
    with torch.no_grad():
        model.features[0].weight[2] = 1e38
        model.features[0].bias[2] = 0
        model.features[1].running_var[2] = 1
        model.features[1].weight[2] = 1
    x = X.clone()
    x[:20] = 0  # zero times anything stays finite
    with pytest.raises(DataError, match=r"site features.2: \d+ of \d+ activations .* first at batch 1, sample 4"):
        calibrate(model, loader(x), MeanStd())


def test_broken_scores_are_refused() -> None:
    model = network()
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(DataError, match="60 of the model's class scores are NaN"):
        calibrate(model, loader(), MeanStd())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": MeanStd}, r"got <class .*MeanStd'>: make one: MeanStd\(\)"),
        ({"method": "unit"}, "must be a calibration method; got 'unit'"),
        ({"granularity": "layer"}, "one of 'neuron', 'channel', 'tensor'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
    ids=["class", "name", "granularity", "batch-size"],
)
def test_bad_options_are_refused_before_the_loader_is_touched(options: dict[str, Any], message: str) -> None:
    source = loader()
    with pytest.raises(UnitFastError, match=message):
        calibrate(network(), source, **{"method": MeanStd(), **options})
    assert len(list(source)) == 4


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(CaptureError, match="model is a str"):
        calibrate("resnet18", loader(), MeanStd())  # type: ignore[arg-type]


def test_a_method_that_forgets_a_site_is_told() -> None:
    @dataclass(frozen=True)
    class Forgetful(Method):
        def fit(self, context: CalibrationContext) -> dict[str, Tensor]:
            return {context.sites[0].name: torch.ones(())}

    with pytest.raises(UnitFastError, match=r"forgetful returned no bounds for features.6"):
        calibrate(network(), loader(), Forgetful(), "tensor")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bounds: bounds | {"features.6": 1.0}, "method own returned float as the bound of features.6"),
        (lambda bounds: bounds | {"features.6": torch.tensor(torch.nan)}, "returned NaN as the bound of features.6"),
        (lambda bounds: bounds | {"elsewhere": torch.ones(())}, "returned bounds for elsewhere, no sites here"),
    ],
    ids=["number", "NaN", "unknown site"],
)
def test_a_method_that_returns_something_else_is_told(change: Any, message: str) -> None:
    @dataclass(frozen=True)
    class Own(Method):
        def fit(self, context: CalibrationContext) -> dict[str, Tensor]:
            bounds: dict[str, Tensor] = change({site.name: torch.ones(()) for site in context.sites})
            return bounds

    with pytest.raises(UnitFastError, match=message):
        calibrate(network(), loader(), Own(), "tensor")


def test_ctrl_c_returns_nothing_and_goes_on() -> None:
    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(network(), loader(), MeanStd(), progress=stop)


def test_contexts_show_what_methods_may_count_on() -> None:
    contexts: list[CalibrationContext] = []

    @dataclass(frozen=True)
    class Looks(Method):
        def fit(self, context: CalibrationContext) -> dict[str, Tensor]:
            contexts.append(context)
            seen = list(context.activations(context.validation_indices))
            assert [len(part["features.2"]) for part in seen] == [8, 7]
            bounds = {site.name: torch.full((), torch.inf) for site in context.sites}
            plain = context.accuracy(context.graph, context.fit_indices)
            assert context.accuracy(insert_bounds(context.graph, bounds), context.fit_indices) == plain
            assert torch.equal(
                torch.rand(2, generator=context.generator()), torch.rand(2, generator=context.generator())
            )
            assert not any(parameter.requires_grad for parameter in context.graph.parameters())
            return bounds

    calibrate(network(), loader(), Looks(), "tensor", batch_size=8)
    with pytest.raises(ValueError, match="closed"):  # the store lives no longer than the call
        contexts[0].samples.read(torch.arange(1))
