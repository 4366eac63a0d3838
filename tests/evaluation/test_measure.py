"""evaluate() on models whose every prediction is known beforehand."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.evaluation.pixel_reader import CLASSES, LABELS, SEEN, STAMP, PixelReader, data
from unit_fast.errors import DataError
from unit_fast.evaluation import Rate, Report, evaluate
from unit_fast.evaluation.triggers import Custom, Patch


def test_rates_count_what_they_say():
    report = evaluate(PixelReader(), data(SEEN, LABELS), trigger=STAMP, target=3)
    assert report.benign == Rate(5, 7)
    assert report.attack == Rate(5, 5)  # the two samples of class 3 do not count
    assert report.robust == Rate(0, 5)
    assert report.benign_accuracy == 5 / 7
    assert report.attack_success_rate == 1.0
    assert report.robust_accuracy == 0.0
    assert report.defence_effectiveness is None


def test_a_model_without_the_backdoor_keeps_its_predictions():
    report = evaluate(PixelReader(None), data(SEEN, LABELS), trigger=STAMP, target=3)
    assert report.attack == Rate(1, 5)  # the sample of class 4 that is taken for a 3 anyway
    assert report.robust == Rate(4, 5)


def test_classes_add_up_to_the_whole():
    report = evaluate(PixelReader(None), data(SEEN, LABELS), trigger=STAMP, target=3)
    assert [result.benign for result in report.classes] == [Rate(1, 1), Rate(1, 1), Rate(1, 1), Rate(1, 2), Rate(1, 2)]
    assert [result.attack for result in report.classes] == [Rate(0, 1), Rate(0, 1), Rate(0, 1), None, Rate(1, 2)]
    assert [result.robust for result in report.classes] == [Rate(1, 1), Rate(1, 1), Rate(1, 1), None, Rate(1, 2)]
    assert [result.triggered_as for result in report.classes] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_batches_of_any_size_give_the_same_report(batch):
    expected = evaluate(PixelReader(), data(SEEN, LABELS), trigger=STAMP, target=3)
    report = evaluate(PixelReader(), data(SEEN, LABELS, batch), trigger=STAMP, target=3)
    assert report == expected
    assert report.examples == expected.examples


def test_without_a_trigger_only_accuracy_is_measured():
    report = evaluate(PixelReader(), data(SEEN, LABELS))
    assert report.benign == Rate(5, 7)
    assert report.attack_success_rate is None
    assert report.robust_accuracy is None
    assert report.examples == ()


def one_further(x: Tensor) -> Tensor:
    x[:, 0, 0, 0] = ((x[:, 0, 0, 0] * 10).round() + 1).remainder(CLASSES) / 10
    return x


@pytest.mark.parametrize(
    "target", [pytest.param("all-to-all", id="by name"), pytest.param(lambda y: (y + 1) % CLASSES, id="as a function")]
)
def test_all_to_all(target):
    report = evaluate(PixelReader(None), data(SEEN, LABELS), trigger=Custom(one_further), target=target)
    # Those seen rightly go one further; of the others, the 4 seen as 3 becomes its own, the 3 seen as 0 a 1.
    assert report.attack == Rate(5, 7)
    assert report.robust == Rate(1, 7)


def test_a_target_function_leaves_out_samples_it_does_not_move():
    report = evaluate(PixelReader(), data(SEEN, LABELS), trigger=STAMP, target=lambda y: torch.where(y == 0, 3, y))
    assert report.attack == Rate(1, 1)


def test_a_baseline_model_is_measured_in_the_same_pass_over_a_loader_that_runs_once():
    report = evaluate(PixelReader(None), iter(data(SEEN, LABELS)), trigger=STAMP, target=3, baseline=PixelReader())
    assert report.baseline == evaluate(PixelReader(), data(SEEN, LABELS), trigger=STAMP, target=3)
    assert report.defence_effectiveness == pytest.approx((0.8 - 0 + 1) / 2)


def test_a_baseline_report_gives_the_same_as_its_model():
    settings = {"trigger": STAMP, "target": 3}
    before = evaluate(PixelReader(), data(SEEN, LABELS), **settings)
    with_report = evaluate(PixelReader(None), data(SEEN, LABELS), baseline=before, **settings)
    assert with_report == evaluate(PixelReader(None), data(SEEN, LABELS), baseline=PixelReader(), **settings)
    assert with_report.defence_effectiveness == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        pytest.param({"trigger": Patch(size=2)}, "trigger", id="another trigger"),
        pytest.param({"target": 2}, "target", id="another target"),
        pytest.param({"trigger": None, "target": None}, "trigger", id="no trigger"),
        pytest.param({"loader": data(SEEN[1:], LABELS[1:])}, "clean samples", id="other data"),
    ],
)
def test_a_baseline_report_of_another_measurement_is_refused(change, what):
    settings = {"loader": data(SEEN, LABELS), "trigger": STAMP, "target": 3}
    before = evaluate(PixelReader(), **{**settings, **change})
    with pytest.raises(DataError, match=f"baseline: its {what}"):
        evaluate(PixelReader(None), baseline=before, **settings)


def test_modes_and_statistics_of_the_model_are_what_they_were():
    model = PixelReader().train()
    model.dropout.eval()
    evaluate(model, data(SEEN, LABELS), trigger=STAMP, target=3)
    assert (model.training, model.dropout.training, model.norm.training) == (True, False, True)
    assert model.norm.num_batches_tracked == 0
    assert not any(model.seen_training)


def test_modes_come_back_when_the_evaluation_fails():
    model = PixelReader().train()
    with pytest.raises(DataError):
        evaluate(model, data([0], [77]))
    assert model.training
    assert not torch.is_inference_mode_enabled()


def test_exported_graphs_which_refuse_eval_are_evaluated():
    model = PixelReader(None).eval()
    x = data(SEEN, LABELS)[0][0]
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)), (x,), dynamic_shapes=({0: batch},)
    )
    assert evaluate(exported.module(), data(SEEN, LABELS)).benign.total == 7
    assert evaluate(model, data(SEEN, LABELS)).benign.total == 7


def test_gradients_are_not_recorded():
    def model(x: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return PixelReader()(x)

    evaluate(model, data(SEEN, LABELS), trigger=STAMP, target=3)


def test_normalisation_comes_after_the_trigger():
    inner = PixelReader()

    def normalised_model(x: Tensor) -> Tensor:
        return inner((x * 0.25 + 0.5).mul(1000).round().div(1000))

    report = evaluate(
        normalised_model, data(SEEN, LABELS), trigger=STAMP, target=3, preprocess=lambda x: (x - 0.5) / 0.25
    )
    assert report.attack == Rate(5, 5)
    assert report.benign == Rate(5, 7)


def test_a_trigger_that_writes_to_its_input_spoils_nothing():
    def stamp_in_place(x: Tensor) -> Tensor:
        return x.copy_(STAMP(x))

    loader = data(SEEN, LABELS)
    first, second = (evaluate(PixelReader(), loader, trigger=stamp_in_place, target=3) for _ in range(2))
    expected = evaluate(PixelReader(), data(SEEN, LABELS), trigger=STAMP, target=3)
    assert first.benign == second.benign == expected.benign
    assert first.attack == second.attack == expected.attack


class FakeSession:
    """The two methods of an ONNX Runtime session that are used."""

    def get_inputs(self):
        return [SimpleNamespace(name="image", type="tensor(float)")]

    def run(self, outputs, feed):
        assert outputs is None
        assert isinstance(feed["image"], np.ndarray)
        return [PixelReader()(torch.from_numpy(feed["image"])).detach().numpy(), np.zeros(1)]


@pytest.mark.parametrize(
    ("model", "logits"),
    [
        pytest.param(lambda x: PixelReader()(x), None, id="function"),
        pytest.param(FakeSession(), None, id="session"),
        pytest.param(lambda x: PixelReader()(x).numpy(), None, id="arrays"),
        pytest.param(lambda x: [PixelReader()(x)], None, id="list of one"),
        pytest.param(lambda x: SimpleNamespace(logits=PixelReader()(x)), None, id=".logits"),
        pytest.param(lambda x: (None, PixelReader()(x)), lambda output: output[1], id="picked by logits="),
        pytest.param(lambda x: {"scores": PixelReader()(x)}, lambda output: output["scores"], id="dict"),
    ],
)
def test_models_are_whatever_can_be_called(model, logits):
    report = evaluate(model, data(SEEN, LABELS), trigger=STAMP, target=3, logits=logits)
    assert report == evaluate(PixelReader(), data(SEEN, LABELS), trigger=STAMP, target=3)


def test_an_onnx_runtime_session_is_a_model(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)).eval()
    program = torch.onnx.export(model, (torch.rand(2, 3, 4, 4),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    program.save(tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    settings = {"trigger": STAMP, "target": 3}
    assert evaluate(session, data(SEEN, LABELS), **settings) == evaluate(model, data(SEEN, LABELS), **settings)


def test_arrays_and_numpy_targets_are_accepted():
    arrays = [(x.numpy(), y.numpy().astype(np.int32)) for x, y in data(SEEN, LABELS)]
    assert evaluate(PixelReader(), arrays, trigger=STAMP, target=np.int64(3)).attack == Rate(5, 5)


def test_progress_counts_batches():
    calls: list[tuple[int, int | None]] = []
    evaluate(PixelReader(), data(SEEN, LABELS), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    calls.clear()
    evaluate(PixelReader(), iter(data(SEEN, LABELS)), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (3, None)


def test_empty_batches_are_passed_over():
    empty = (torch.empty(0, 3, 4, 4), torch.empty(0, dtype=torch.int64))
    assert evaluate(PixelReader(), [empty, *data(SEEN, LABELS)], trigger=STAMP, target=3).benign == Rate(5, 7)


def test_the_loader_is_streamed():
    alive = 0

    class Counted(Tensor):
        pass

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def loader():
        nonlocal alive
        for number in range(50):
            x = torch.full((2, 3, 4, 4), number / 100).as_subclass(Counted)
            alive += 1

            weakref.finalize(x, gone)
            yield x, torch.tensor([0, 1])
            del x
            assert alive <= 2

    assert evaluate(lambda x: torch.zeros(len(x), 2), loader(), trigger=STAMP, target=1).benign.total == 100


def test_an_error_of_the_model_says_what_it_was_called_with():
    with pytest.raises(RuntimeError) as caught:
        evaluate(nn.Linear(3, 5), data(SEEN, LABELS))
    assert "called with a batch of shape (3, 3, 4, 4)" in caught.value.__notes__[0]


def test_examples_show_what_the_models_saw():
    settings = {"trigger": STAMP, "target": 3, "examples": 2}
    report = evaluate(PixelReader(None), data(SEEN, LABELS), baseline=PixelReader(), **settings)
    assert isinstance(report.baseline, Report)
    assert len(report.examples) == 2
    for after, before in zip(report.examples, report.baseline.examples, strict=True):
        assert after.index == before.index
        assert after.label == LABELS[after.index] != 3
        assert after.clean_prediction == before.clean_prediction == SEEN[after.index]
        assert (after.triggered_prediction, before.triggered_prediction) == (SEEN[after.index], 3)
        assert after.clean_png != after.triggered_png


class Elsewhere(nn.Module):
    """Lives on the meta device, which stands for a GPU here: what arrives is noted, what leaves is real."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, device="meta"))
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.device.type)
        return torch.zeros(len(x), CLASSES)


def test_batches_are_moved_to_where_the_model_is():
    model = Elsewhere()
    assert evaluate(model, data(SEEN, LABELS)).provenance["device"] == "meta"
    assert set(model.seen) == {"meta"}


def test_batches_are_moved_where_asked_and_functions_get_them_as_they_come():
    seen: list[str] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.device.type)
        return torch.zeros(len(x), CLASSES)

    evaluate(model, data(SEEN, LABELS), device="meta")
    assert set(seen) == {"meta"}
    seen.clear()
    evaluate(model, data(SEEN, LABELS))
    assert set(seen) == {"cpu"}
