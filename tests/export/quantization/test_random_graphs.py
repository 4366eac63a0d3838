"""int8 exports of drawn networks are as good as eight bits are, within their bounds, or refused for a reason."""

import math
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import Phase, example, given
from hypothesis import strategies as st
from onnx import helper
from torch import Tensor

from tests.export.eight_bits import EightBits
from tests.export.random_nets import (
    CURVED,
    JOINED,
    UPSAMPLED,
    DrawnBounds,
    DrawnNet,
    RandomCase,
    drawn_bounds,
    drawn_nets,
)
from tests.properties import examples
from unit_fast.errors import ParityError
from unit_fast.export import OnnxRuntimeModel
from unit_fast.export.flat import in_dtype
from unit_fast.export.options import Options
from unit_fast.export.pipeline import export_graph
from unit_fast.fusion.rewrite import copy_graph
from unit_fast.processor import weight_bits
from unit_fast.sites import insert_bounds

# The export may round where the simulation does not (before an activation that is no clamp), fold for a decibel less,
# and take a bound for the end of its steps that lies up to twice above what the data reaches.
FACTOR = 4.0
# 50 dB: outputs that are all alike may be lucky in one of the two.
ONE_ROUNDING = 10**-5.0
# It refuses what has less than 20 dB signal to noise, or less where there are classes.
SIGNAL = 10**2.0 * FACTOR


# Their signal is 30 dB above the noise of eight bits and more: no refusal excuses a mistake.
SKIPPED = DrawnNet((("plain", "relu", "concat"), ("grouped", "relu", "conv_skip")), "feature")
DEEP = DrawnNet((("plain", "relu", "identity"), ("depthwise", "relu6", "concat")), "feature")
TRANSPOSED = DrawnNet((("no_bias", "relu", "twice"), ("transposed", "relu", "chain")), "flatten")
PLAIN_BOUNDS = (None, None, None, None)


@pytest.mark.filterwarnings("ignore::unit_fast.errors.UnitFastWarning")
@examples(2, phases=[Phase.explicit, Phase.generate])
@given(net=drawn_nets(), bounds=drawn_bounds(), form=st.sampled_from(["auto", "min", "folded"]))
@example(net=SKIPPED, bounds=DrawnBounds("channel", PLAIN_BOUNDS), form="auto")
@example(net=DEEP, bounds=DrawnBounds("neuron", PLAIN_BOUNDS), form="auto")
@example(net=TRANSPOSED, bounds=DrawnBounds("channel", PLAIN_BOUNDS), form="folded")
@example(net=JOINED, bounds=DrawnBounds("channel", (None, 0.0, None, 1e-40)), form="auto")
@example(net=UPSAMPLED, bounds=DrawnBounds("neuron", (None, math.inf, -0.2, None)), form="auto")
@example(net=CURVED, bounds=DrawnBounds("channel", (None, 0.3, None, None)), form="auto")
def test_random_graphs_in_int8_are_as_good_as_eight_bits(
    net: DrawnNet, bounds: DrawnBounds, form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = RandomCase(net)
    learned = case.bounds(bounds)
    images = torch.cat([case.images, torch.randn(56, 4, 6, 6)])
    reference = insert_bounds(case.captured, dict(learned.items()))
    truth = EightBits(in_dtype(case.flat(learned), torch.float64).module, images.double(), weight_bits())
    noise = (truth.rounded - truth.exact).pow(2).mean()
    options = Options(form, "int8", 20, verify=False, weight_bits=weight_bits())
    path = tmp_path_factory.mktemp("int8") / "model.onnx"

    try:
        report = export_graph(copy_graph(reference), learned, path, case.images, options, images.split(32))
    except ParityError as error:
        report, refusal = None, str(error)

    if report is None:
        assert "signal to noise" in refusal, "refused for something else than what eight bits cost"
        assert truth.exact.var(0).mean() < SIGNAL * noise, "refused where eight bits are enough"
        assert not path.exists()
        return
    found = OnnxRuntimeModel(report.path)(images)
    assert (found.double() - truth.exact).pow(2).mean() <= FACTOR * (noise + ONE_ROUNDING * truth.exact.pow(2).mean())
    usual, driven = (_activations(report.path, report.forms, batch) for batch in (images, images * 20))
    for site, bound in learned.items():
        if report.forms[site] != "none":
            folds = form != "min" and (bounds.granularity == "channel" or bound.ndim == 1)
            scale = _scale(usual[site], truth.sites[site], bound) if folds else torch.tensor(1.0)
            assert (driven[site] * scale <= bound).all(), f"{site} exceeds its bound"


def _activations(path: Path, forms: dict[str, str], images: Tensor) -> dict[str, Tensor]:
    """What the file's clamps give, by site."""
    model = onnx.load(path)
    readers = {node.input[0]: node for node in model.graph.node}
    clamps = {node.name.removesuffix("/clamp"): node.output[0] for node in model.graph.node}
    names = {}
    for site, form in forms.items():
        if form != "none":
            integers = form in ("scale", "integer min")
            names[site] = readers[clamps[site]].output[0] if integers else clamps[site]
    known = {value.name for value in model.graph.output}
    for name in sorted({*names.values()} - known):
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    exposed = path.with_name("exposed.onnx")
    onnx.save(model, exposed)
    runner = OnnxRuntimeModel(exposed)
    found = runner.run({runner.input_names[0]: images.numpy()})
    return {site: found[name] for site, name in names.items()}


def _scale(found: Tensor, exact: Tensor, bound: Tensor) -> Tensor:
    """What folding divided the file's activation by, by channel; exactly 1 where it is not folded."""
    found = found.double()
    others = [0, *range(2, found.ndim)]
    power = found.square().sum(others).reshape(bound.shape)
    scale = torch.where(power > 0, (found * exact).sum(others).reshape(bound.shape) / power, 1.0)
    # Rounding blurs what is found by a few per cent, the more the fewer steps a channel has.
    return torch.ones_like(scale) if bool(((scale - 1).abs() < 0.05).all()) else scale * 0.97
