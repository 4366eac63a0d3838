"""Measures of what the clamps took away, and thresholds on them, against counting by hand."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unit_fast as uf
from tests.networks import SmallResNet, randomised
from tests.runtime.networks import bounds_of, images
from unit_fast.bounds import CleanReadings
from unit_fast.threshold import measures, unusable, usual_excess


@pytest.fixture(scope="module")
def model():
    return randomised(SmallResNet())


@pytest.fixture(scope="module", params=["neuron", "channel", "tensor"])
def fast(model, request):
    return uf.sanitize(model, bounds_of(model, images(2), request.param), images(1), backend="eager")


def activations(model: SmallResNet, bounds: uf.Bounds, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What goes into each clamp, in the module's own layers, and the output."""
    limits, seen = iter(bounds.tensors.values()), []

    def clamped(y: Tensor) -> Tensor:
        seen.append(y)
        return torch.minimum(y, next(limits))

    y = clamped(F.relu(model.stem(x)))
    for block in model.blocks:
        inner = clamped(F.relu(block.bn1(block.conv1(y))))
        y = clamped(F.relu(block.bn2(block.conv2(inner)) + y))
    return seen, model.head(y.mean((2, 3)))


def test_monitor_gives_the_share_of_neurons_above_their_bound(model, fast):
    x = images(5)
    output, saturation = fast.monitor(x)
    seen, expected = activations(model, fast.bounds, x)
    above = [(y > bound).flatten(1) for y, bound in zip(seen, fast.bounds.tensors.values(), strict=True)]
    torch.testing.assert_close(saturation, torch.cat(above, 1).float().mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert saturation.dtype == torch.float32
    assert 0 < saturation.min() < saturation.max() < 1


def test_excess_is_that_of_the_worst_activation_in_units_of_clean_ones(model, fast):
    fast = uf.sanitize(model, fast.bounds, images(1), backend="eager").fit_threshold([(images(40), None)])
    x = 3 * images(6)
    _, found = fast.inspect(x)

    def furthest(x: Tensor) -> Tensor:
        seen, _ = activations(model, fast.bounds, x)
        pairs = zip(seen, fast.bounds.tensors.values(), strict=True)
        return torch.stack([(y - bound).flatten(1).amax(1).clamp(min=0) for y, bound in pairs], 1)

    expected = (furthest(x) / furthest(images(40)).mean(0)).amax(1)
    torch.testing.assert_close(found["excess"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["saturation"], fast.monitor(x)[1])


def test_what_is_usual_is_read_once_and_again_when_it_is_learned_anew(model, fast, monkeypatch):
    fast = uf.sanitize(model, fast.bounds, images(1), backend="eager").fit_threshold([images(40)])
    read = []
    monkeypatch.setattr(
        "unit_fast.runtime.model.usual_excess", lambda bounds: read.append(bounds.readings) or usual_excess(bounds)
    )
    x = 3 * images(6)
    first = fast.inspect(x)[1]["excess"]
    assert torch.equal(fast.inspect(x)[1]["excess"], first)
    assert len(read) == 1
    again = fast.fit_threshold([2 * images(40)]).inspect(x)[1]["excess"]
    assert len(read) == 2
    assert bool((again < first).any())


@pytest.mark.parametrize("infinities", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_unusable_samples_are_found_by_their_values(dtype, infinities):
    """Whatever they sum to: infinities of both signs to NaN, large finite values to infinity."""
    largest = torch.finfo(dtype).max
    rows = [[1.0, 2.0], [torch.nan, 1.0], [torch.inf, 1.0], [-torch.inf, torch.inf], [largest, largest]]
    for chosen in itertools.chain.from_iterable(itertools.combinations(rows, count) for count in (1, 2, 5)):
        x = torch.tensor(chosen, dtype=dtype)
        expected = x.isnan().any(1) | (x.isinf().any(1) & (not infinities))
        found = unusable([x, "no tensor", torch.ones(9)], infinities, len(x), x.device)
        assert (torch.zeros(len(x), dtype=torch.bool) if found is None else found).equal(expected)


def test_without_clean_readings_there_is_no_excess_and_no_threshold(fast):
    assert list(fast.inspect(images(2))[1]) == ["saturation"]
    with pytest.raises(uf.DataError, match=r"no readings of clean samples.*calibrate again.*fit_threshold"):
        fast.threshold()


@pytest.mark.parametrize("of", ["saturation", "excess"])
@pytest.mark.parametrize("fpr", [0.01, 0.1, 0.5])
def test_no_more_clean_samples_exceed_the_threshold_than_were_allowed(model, fast, of, fpr):
    fast = uf.sanitize(model, fast.bounds, images(1), backend="eager")
    fast.fit_threshold(images(300).split(64))
    limit = fast.threshold(fpr, of)
    clean = fast.inspect(images(300))[1][of]
    assert (clean > limit).sum() <= fpr * 300
    assert (clean >= limit).sum() >= fpr * 300 - 1  # one rank lower and too many would exceed it


def test_fresh_clean_samples_raise_as_few_alarms_as_promised(model, fast):
    fast = uf.sanitize(model, fast.bounds, images(1), backend="eager").fit_threshold([images(999)])
    alarms = (fast.monitor(images(4000))[1] > fast.threshold(0.05)).float().mean()
    # The rate at a quantile of 999 samples has a deviation of √(0.05·0.95/999) = 0.007; fresh samples add 0.003.
    assert abs(alarms - 0.05) < 3.5 * 0.0077


@pytest.mark.parametrize("fpr", [0, 1, -0.1, "1%", True, None])
def test_impossible_rates_are_refused(fast, fpr):
    with pytest.raises(uf.UnitFastError, match="expected a share of false alarms between 0 and 1"):
        fast.threshold(fpr)


def test_too_few_samples_for_a_rate_are_said(model, fast):
    fast = uf.sanitize(model, fast.bounds, images(1), backend="eager").fit_threshold([images(40)])
    with pytest.raises(uf.DataError, match=r"fpr=0.01 needs at least 99 clean samples.*readings of 40"):
        fast.threshold(0.01)
    with pytest.raises(uf.UnitFastError, match="expected one of saturation, excess"):
        fast.threshold(0.1, of="counts")


def test_a_loader_that_gives_nothing_is_refused(fast):
    with pytest.raises(uf.DataError, match="no clean samples"):
        fast.fit_threshold([])


def test_calibrate_reads_the_samples_it_held_out_and_the_file_keeps_them(model, tmp_path):
    x = images(120)
    bounds = uf.calibrate(model, [(x, torch.arange(120) % 5)], method=uf.Percentile(0.9))
    held_out = bounds.metadata["samples"]["validation"]
    assert bounds.readings.counts.shape == bounds.readings.excess.shape == (held_out, len(bounds))
    loaded = uf.Bounds.load(bounds.save(tmp_path / "bounds.safetensors"))
    fast, again = (uf.sanitize(model, found, images(1), backend="eager") for found in (bounds, loaded))
    assert fast.threshold(0.05) == again.threshold(0.05) > 0
    readings = uf.sanitize(model, bounds, images(1), backend="eager").fit_threshold([x]).bounds.readings
    every = {tuple(row) for row in readings.counts.tolist()}
    assert {tuple(row) for row in bounds.readings.counts.tolist()} <= every


def test_readings_of_another_number_of_sites_are_refused(model):
    bounds = bounds_of(model, images(1))
    with pytest.raises(uf.BoundsMismatchError, match=r"clean counts have the shape \(3, 2\); expected \(samples, 5\)"):
        dataclasses.replace(bounds, readings=CleanReadings(torch.zeros(3, 2), torch.zeros(3, 2)))


@pytest.fixture(scope="module")
def fitted(model):
    bounds = bounds_of(model, images(2))
    return uf.sanitize(model, bounds, images(1), backend="eager").fit_threshold([images(40)])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("hidden", [False, True], ids=["kept by ReLU", "lost by ReLU"])
def test_a_sample_that_holds_no_numbers_raises_the_alarm(fitted, monkeypatch, value, hidden):
    x = images(3)
    x[1, :, 2] = value
    if hidden:  # as oneDNN's ReLU, which makes 0 of NaN
        output, counts, excess = fitted._runner().inspect(images(3))
        monkeypatch.setattr(fitted._runner(), "inspect", lambda *_: (output, counts, excess))
    excess = fitted.inspect(x)[1]["excess"]
    assert (excess == torch.inf).tolist() == [False, True, False]
    assert (excess > fitted.threshold(0.1, of="excess"))[1]


def test_nan_that_arises_within_raises_the_alarm(fitted):
    _, counts, excess = fitted._runner().inspect(images(3))
    excess[1, 0] = torch.nan
    assert measures(counts, excess, usual_excess(fitted.bounds), 100)["excess"].isinf().tolist() == [False, True, False]


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.relu(x) * mask.softmax(1)


def test_infinite_masks_are_usual_where_the_example_has_them():
    x, mask = images(1)[0, 0], torch.zeros(8, 8)
    mask[:, 5:] = -torch.inf
    model = Masked().eval()
    fast = uf.sanitize(model, bounds_of(model, (x, mask)), (x, mask), backend="eager").fit_threshold(
        [((x, mask), None)]
    )
    assert fast.inspect(x, mask)[1]["excess"].isfinite().all()
    assert fast.inspect(x * torch.nan, mask)[1]["excess"].isinf().all()


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        pytest.param(
            lambda x: x, r"loader is a Tensor; expected an iterable of batches.*\[x\] for one batch", id="tensor"
        ),
        pytest.param(lambda _: 7, "loader is a int; expected an iterable of batches", id="number"),
        pytest.param(lambda x: [x, x[0]], r"batch 1: got x \(3, 8, 8\); the model was sanitised for", id="sample"),
        pytest.param(lambda x: [x[:, :2]], r"batch 0: the model does not run on x \(4, 2, 8, 8\)", id="channels"),
        pytest.param(lambda x: [x, x / 0], "batch 1, sample 0: .* NaN or infinite", id="infinite"),
        pytest.param(lambda x: [x * torch.nan], "batch 0, sample 0: .* NaN or infinite", id="nan"),
        pytest.param(lambda x: [3e38 * x.sign()], r"sample \d: its activations are NaN or infinite", id="overflow"),
    ],
)
def test_what_is_no_clean_sample_is_refused(fitted, loader, message):
    before = fitted.bounds
    with pytest.raises(uf.DataError, match=message):
        fitted.fit_threshold(loader(images(4)))
    assert fitted.bounds is before


def test_readings_that_are_no_numbers_give_no_threshold(model):
    bounds = bounds_of(model, images(2))
    bounds = dataclasses.replace(bounds, readings=CleanReadings(torch.zeros(9, 5), torch.full((9, 5), torch.nan)))
    with pytest.raises(uf.DataError, match="clean readings in these bounds hold NaN"):
        uf.sanitize(model, bounds, images(1), backend="eager").threshold(0.5, of="excess")


class Mixed(nn.Module):
    """Adds the windows of a sample to steps that are another's, so that no row belongs to one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:  # (N, 4, 6) -> (N, 3)
        rows = F.relu(x.reshape(-1, 6) + x.transpose(0, 1).reshape(-1, 6))
        return self.head(rows.reshape(-1, 24))


def test_bounds_without_an_alarm_are_better_than_none():
    model, x = Mixed().eval(), torch.randn(40, 4, 6, generator=torch.Generator().manual_seed(0))

    with pytest.warns(uf.UnitFastWarning, match="no alarm can be raised by them: site relu has"):
        bounds = uf.calibrate(model, [(x, torch.arange(40) % 3)], method=uf.Maximum())

    assert bounds.readings is None
    fast = uf.sanitize(model, bounds, x, backend="eager")
    assert not torch.equal(fast(10 * x), model(10 * x))
    with pytest.raises(uf.CaptureError, match=r"site relu has .*exclude="):
        fast.inspect(x)
