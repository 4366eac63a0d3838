"""Detection figures against counting pairs by hand, and where evaluate() takes them from."""

import math

import pytest
import torch
from torch import Tensor, nn

from unit_fast.errors import DataError
from unit_fast.evaluation import Rate, Report, evaluate
from unit_fast.evaluation.detection import area_under_roc, detection


@pytest.mark.parametrize("ties", [False, True], ids=["all different", "many ties"])
def test_auroc_is_the_share_of_pairs_won(ties):
    generator = torch.Generator().manual_seed(0)
    clean, triggered = torch.rand(40, generator=generator), torch.rand(30, generator=generator) + 0.2
    if ties:
        clean, triggered = (10 * clean).round(), (10 * triggered).round()
    won = sum((t > c) + 0.5 * (t == c) for t in triggered.tolist() for c in clean.tolist())
    assert area_under_roc(clean, triggered) == pytest.approx(won / (40 * 30))


def test_at_most_one_clean_sample_in_a_hundred_raises_an_alarm():
    found = detection("height", torch.arange(250.0), torch.tensor([0.0, 247.0, 248.0, 300.0, math.nan]))
    assert found.threshold == 247
    assert found.false_alarms == Rate(2, 250)
    assert found.detected == Rate(3, 5)  # what cannot be measured is suspicious


def test_ties_at_the_threshold_raise_none():
    found = detection("height", torch.ones(500), torch.tensor([1.0, 2.0]))
    assert found.false_alarms == Rate(0, 500)
    assert found.detected == Rate(1, 2)


class Watching(nn.Module):
    """Class 1 where the first pixel is above 0.5; measures that pixel, and its negative."""

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0, 0, 0]
        return torch.stack([0.5 - first, first - 0.5], 1)

    def inspect(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self(x), {"first": x[:, 0, 0, 0], "minus": -x[:, 0, 0, 0]}


class Monitoring(Watching):
    inspect = None

    def monitor(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), x[:, 0, 0, 0]


def whitened(x: Tensor) -> Tensor:
    return torch.ones_like(x)


@pytest.fixture
def loader():
    x = 0.9 * torch.rand(120, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(50), (x[:, 0, 0, 0] > 0.5).long().split(50), strict=True))


def test_a_model_that_measures_is_judged_as_a_detector(loader):
    report = evaluate(Watching(), loader, trigger=whitened, target=1)
    first, minus = report.detection
    assert (first.measure, first.auroc, first.detected.value) == ("first", 1.0, 1.0)
    assert (minus.measure, minus.auroc, minus.detected.value) == ("minus", 0.0, 0.0)
    assert first.false_alarms == Rate(1, 120)
    assert first.detected.total == report.attack.total


def test_a_monitor_will_do(loader):
    (found,) = evaluate(Monitoring(), loader, trigger=whitened, target=1).detection
    assert (found.measure, found.auroc) == ("saturation", 1.0)


def test_nothing_is_measured_where_nothing_can_be(loader):
    model = Watching()
    assert evaluate(lambda x: model(x), loader, trigger=whitened, target=1).detection == ()
    assert evaluate(model, loader).detection == ()


def test_the_figures_are_in_table_page_and_json(loader, tmp_path):
    from rich.console import Console

    report = evaluate(Watching(), loader, trigger=whitened, target=1, baseline=Monitoring())
    assert Report.load_json(report.save_json(tmp_path / "r.json")) == report
    console = Console(record=True, width=120)
    console.print(report)
    text = console.export_text()
    assert "triggers told by first, 0.8% false alarms" in text
    assert "AUROC" in text
    page = report.save_html(tmp_path / "r.html").read_text()
    assert "Triggers told from clean images" in page
    assert "AUROC 1.000" in page


def test_reports_of_earlier_versions_are_read(loader):
    values = evaluate(Watching(), loader, trigger=whitened, target=1).to_dict()
    del values["detection"]
    assert Report.from_dict(values).detection == ()


def test_what_is_no_measure_is_refused(loader):
    model = Monitoring()
    model.monitor = lambda x: (model(x), torch.tensor(0.5))
    with pytest.raises(DataError, match=r"its saturation is \(\); expected a tensor \(50,\)"):
        evaluate(model, loader, trigger=whitened, target=1)
