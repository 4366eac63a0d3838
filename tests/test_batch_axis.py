"""Activations whose batch is not in front are bounded like all others: what a bound clamps is one sample's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import unit_fast as uf
from tests.properties import examples
from tests.runtime.networks import bounds_of, needs_compiler
from unit_fast.capture import capture
from unit_fast.export import OnnxRuntimeModel, export_onnx
from unit_fast.sites import Site, expose_sites, find_sites, insert_bounds


class Moved(nn.Module):
    """ReLU of an input whose dimensions were permuted; the output has the batch in front again."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order
        self.back = tuple(order.index(axis) for axis in range(len(order)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x.permute(self.order)).permute(self.back)


@examples(10)
@given(order=st.integers(2, 4).flatmap(lambda rank: st.permutations(range(rank))), data=st.data())
def test_every_sample_is_clamped_by_the_bound_of_its_site(order: list[int], data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, *(2, 3, 4)[: len(order) - 1], generator=generator)
    graph = capture(Moved(tuple(order)), x)

    (site,) = find_sites(graph)

    others = [axis for axis in order if axis != 0]
    assert site.shape == tuple(x.shape[axis] for axis in others)
    assert site.batch_axis == order.index(0)
    shape = tuple(size if data.draw(st.booleans()) else 1 for size in site.shape)
    bound = torch.rand(shape, generator=generator)
    sanitised = insert_bounds(graph, {site.name: bound})
    expected = torch.minimum(F.relu(x).permute(0, *others), bound)
    output, activations = expose_sites(sanitised, [site])(x)
    assert torch.equal(activations[site.name], expected)
    assert torch.equal(output, expected.permute([0, *(1 + others.index(axis) for axis in range(1, x.ndim))]))
    assert torch.equal(expose_sites(graph, [site])(x)[1][site.name], F.relu(x).permute(0, *others))


class SequenceFirst(nn.Module):
    """An encoder layer as torch makes it by default, over (L, N, E)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 16), nn.Linear(16, 5)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32)

    def forward(self, x: Tensor) -> Tensor:  # (N, L, 3) -> (N, 5)
        return self.head(self.layer(self.embed(x).transpose(0, 1)).mean(0))


class Recurrent(nn.Module):
    """A network whose hidden state is made by ReLU, two layers, batch second as torch has it by default."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(3, 6, 2, nonlinearity="relu"), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:  # (N, L, 3) -> (N, 5)
        return self.head(self.rnn(x.transpose(0, 1))[0][-1])


class Cell(nn.Module):
    """The same, cell by cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(3, 6, nonlinearity="relu"), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:  # (N, L, 3) -> (N, 5)
        state = x.new_zeros(x.shape[0], 6)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


def sequences(count: int) -> Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(count))


@pytest.fixture(params=[SequenceFirst, Recurrent, Cell], ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param().eval()


SHAPES = {SequenceFirst: [(2, 32)], Recurrent: [(1, 6)] * 4, Cell: [(6,)] * 2}


@pytest.mark.parametrize("granularity", ["neuron", "channel", "tensor"])
def test_every_activation_has_a_site(model: nn.Module, granularity: str) -> None:
    bounds = bounds_of(model, sequences(3), granularity)
    assert [site.shape for site in bounds.sites] == SHAPES[type(model)]
    widths = {"neuron": [site.shape for site in bounds.sites], "tensor": [()] * len(bounds)}
    channels = [(*[1] * (len(site.shape) - 1), site.shape[-1]) for site in bounds.sites]
    assert [tuple(bound.shape) for bound in bounds.values()] == widths.get(granularity, channels)


def test_calibration_sees_activations_sample_by_sample(model: nn.Module) -> None:
    x = sequences(40)
    bounds = uf.calibrate(model, [(x, torch.arange(40) % 5)], method=uf.Maximum(), granularity="neuron")
    graph = capture(model, x)
    _, activations = expose_sites(graph, bounds.sites)(x)
    for site in bounds.sites:
        assert activations[site.name].shape == (40, *site.shape)
        assert (bounds[site.name] <= activations[site.name].amax(0)).all()
    sanitised = uf.sanitize(model, bounds, x, backend="eager")
    _, saturation = sanitised.monitor(10 * x)
    assert saturation.min() > 0


def test_recurrent_states_are_clamped_before_the_next_step() -> None:
    torch.manual_seed(0)
    model, x, bound = Cell().eval(), sequences(5), torch.rand(2, 6) / 4
    graph = capture(model, x)
    found = insert_bounds(graph, {site.name: row for site, row in zip(find_sites(graph), bound, strict=True)})(x)
    state = torch.zeros(5, 6)
    for step, row in zip(x.unbind(1), bound, strict=True):
        state = torch.minimum(model.cell(step, state), row)
    torch.testing.assert_close(found, model.head(state))
    assert not torch.allclose(found, model(x))


@needs_compiler
def test_compiled_exported_and_inspected_they_agree(model: nn.Module, tmp_path) -> None:
    x = sequences(6)
    fast = uf.sanitize(model, bounds_of(model, x), x, backend="eager").fit_threshold([x])
    compiled = uf.sanitize(model, fast.bounds, x, backend="compile")
    export_onnx(model, fast.bounds, tmp_path / "m.onnx", example_input=x, inspect=True)
    exported = OnnxRuntimeModel(tmp_path / "m.onnx")
    for batch in (1, 6):
        (expected, wanted), *others = (run.inspect(3 * x[:batch]) for run in (fast, compiled, exported))
        for output, measures in others:
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(measures["excess"], wanted["excess"], rtol=1e-3, atol=1e-3)
    assert wanted["excess"].min() > 0


def test_what_has_no_one_batch_gets_a_warning_and_no_bound() -> None:
    class Grouped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # (N, 2, 3) -> (N, 6)
            return F.relu(x).flatten(1) + F.relu(x.flatten(0, 1).t()).t().reshape(x.shape[0], -1)

    graph = capture(Grouped(), sequences(3))
    with pytest.warns(uf.UnitFastWarning, match=r"site relu_1 gets no bound: .*\(3, 2\*s\d+\)") as caught:
        sites = find_sites(graph)
    assert len(caught) == 1
    assert sites == (Site("relu", "relu", (2, 3), -1, "relu"),)
