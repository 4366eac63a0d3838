"""The bounds file: what goes in comes out, and whatever else comes is refused with its reason."""

import json
import os
import stat
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tests.properties import examples
from unit_fast.bounds import Bounds, CleanActivations, _checksum, bound_shape
from unit_fast.errors import BoundsMismatchError, UnitFastError, UnitFastWarning
from unit_fast.fingerprint import Fingerprint
from unit_fast.sites import Site

CONV = Site("features.0", "relu", (3, 4, 5), 1, "relu")
LINEAR = Site("head.act", "gelu", (7, 6), -1, "gelu")
MODEL = Fingerprint("graph", {"conv.weight": "aa", "conv.bias": "bb"})


def make(granularity="neuron", clean=True) -> Bounds:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        site.name: torch.rand(bound_shape(site, granularity), generator=generator) + 0.1 for site in (CONV, LINEAR)
    }
    histograms = {
        site.name: CleanActivations(torch.tensor([4.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]), 2 * tensors[site.name])
        for site in (CONV, LINEAR)
    }
    metadata = {"method": {"name": "unit", "settings": {"tolerance": 0.03}}, "versions": {"torch": "2.13"}}
    return Bounds(tensors, (CONV, LINEAR), granularity, MODEL, metadata, histograms if clean else {})


@pytest.mark.parametrize(
    ("granularity", "conv", "linear"),
    [("neuron", (3, 4, 5), (7, 6)), ("channel", (3, 1, 1), (1, 6)), ("tensor", (), ())],
)
def test_bound_shapes(granularity, conv, linear):
    assert bound_shape(CONV, granularity) == conv
    assert bound_shape(LINEAR, granularity) == linear


def test_they_are_shown_in_a_line():
    assert repr(make("neuron")) == "<Bounds: 102 at 2 sites, per neuron>"


@pytest.mark.parametrize("granularity", ["neuron", "channel", "tensor"])
@pytest.mark.parametrize("clean", [True, False], ids=["with histograms", "bare"])
def test_round_trip(tmp_path, granularity, clean):
    bounds = make(granularity, clean)
    loaded = Bounds.load(bounds.save(tmp_path / "bounds.safetensors"))
    assert list(loaded) == list(bounds)
    assert all(torch.equal(loaded[name], bounds[name]) for name in bounds)
    assert (loaded.sites, loaded.granularity, loaded.fingerprint, loaded.metadata) == (
        bounds.sites,
        bounds.granularity,
        bounds.fingerprint,
        bounds.metadata,
    )
    assert loaded.sha256 == bounds.sha256
    assert loaded.clean.keys() == bounds.clean.keys()
    assert all(torch.equal(loaded.clean[name].counts, bounds.clean[name].counts) for name in loaded.clean)


def test_the_same_bounds_give_the_same_bytes(tmp_path):
    first, second = make().save(tmp_path / "a"), make().save(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_special_values_survive(tmp_path):
    bounds = replace(
        make("tensor", clean=False), tensors={CONV.name: torch.tensor(float("inf")), LINEAR.name: torch.tensor(-0.0)}
    )
    loaded = Bounds.load(bounds.save(tmp_path / "bounds.safetensors"))
    assert loaded[CONV.name] == float("inf")
    assert torch.signbit(loaded[LINEAR.name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"granularity": "layer"}, "granularity is 'layer'; expected one of neuron, channel, tensor"),
        ({"granularity": "channel"}, r"features.0 has the shape \(3, 4, 5\); a bound per channel .* \(3, 1, 1\)"),
        ({"sites": (CONV,)}, "a bound for every site"),
        (
            {"tensors": {CONV.name: torch.full((3, 4, 5), float("nan")), LINEAR.name: torch.ones(7, 6)}},
            "features.0 holds NaN",
        ),
        (
            {"tensors": {CONV.name: torch.full((3, 4, 5), float("-inf")), LINEAR.name: torch.ones(7, 6)}},
            "features.0 holds -inf, which leaves no activation",
        ),
        (
            {"tensors": {CONV.name: torch.ones(3, 4, 5, dtype=torch.int64), LINEAR.name: torch.ones(7, 6)}},
            "features.0 is a tensor of torch.int64; expected a tensor of float32",
        ),
        ({"tensors": {CONV.name: 1.0, LINEAR.name: torch.ones(7, 6)}}, "features.0 is a float; expected a tensor"),
    ],
    ids=["granularity", "shape", "sites", "NaN", "-inf", "whole numbers", "no tensor"],
)
def test_impossible_bounds_are_refused(change, message):
    with pytest.raises(BoundsMismatchError, match=message):
        replace(make(), **change)


def test_the_model_they_were_fitted_on_is_accepted():
    make().require_model(MODEL, (CONV, LINEAR))


def test_activations_that_an_earlier_version_did_not_find_are_named():
    bounds, missed = make(), replace(LINEAR, name="tail.act")
    with pytest.warns(
        UnitFastWarning, match=r"nothing bounds 1 of the model's 3 activations \(tail.act\).*calibrate again"
    ):
        bounds.require_model(MODEL, (CONV, LINEAR, missed))
    replace(bounds, metadata={}).require_model(MODEL, (CONV, LINEAR, missed))  # by hand, for whatever sites
    left_out = bounds.metadata | {"without_bounds": ["tail.act"]}
    replace(bounds, metadata=left_out).require_model(MODEL, (CONV, LINEAR, missed))


@pytest.mark.parametrize(
    ("fingerprint", "sites", "message"),
    [
        (
            Fingerprint("graph", {"conv.weight": "XX", "conv.bias": "bb"}),
            (CONV, LINEAR),
            "conv.weight has other values",
        ),
        (Fingerprint("graph", {"conv.weight": "aa"}), (CONV, LINEAR), "conv.bias is missing"),
        (Fingerprint("graph", {**MODEL.tensors, "fc.bias": "c"}), (CONV, LINEAR), "fc.bias is not expected"),
        (Fingerprint("other", MODEL.tensors), (CONV, LINEAR), "the graph has other operators"),
        (MODEL, (CONV,), "site head.act is missing"),
        (
            MODEL,
            (replace(CONV, shape=(3, 8, 8)), LINEAR),
            r"activations \(3, 8, 8\), its bounds per neuron .* \(3, 4, 5\)",
        ),
    ],
    ids=["weights", "missing tensor", "extra tensor", "graph", "missing site", "image size"],
)
def test_another_model_is_refused_with_the_differences(fingerprint, sites, message):
    with pytest.raises(BoundsMismatchError, match=message):
        make().require_model(fingerprint, sites)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_coarse_bounds_hold_at_any_image_size(granularity):
    make(granularity).require_model(MODEL, (replace(CONV, shape=(3, 8, 8)), LINEAR))


def rewrite(path, change_header=None, change_tensors=None, checksum=True):
    """Change a file; with ``checksum`` as somebody who knows how it is computed would."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["unit_fast"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    if change_header:
        change_header(header)
    if change_tensors:
        change_tensors(tensors)
    if checksum:
        header.pop("checksum")
        header["checksum"] = _checksum(header, tensors)
    save_file(tensors, path, metadata={"unit_fast": json.dumps(header)})


def raise_a_bound(tensors):
    tensors["bound/features.0"][0, 0, 0] += 1.0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "there is no bounds file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "truncated"),
        (lambda path: path.write_bytes(b""), "no bounds file, or is truncated"),
        (lambda path: path.write_bytes(b"\x80\x04N." * 9), "no bounds file, or is truncated"),
        (lambda path: save_file({"weight": torch.ones(2)}, path), "holds no bounds of unit_fast"),
        (lambda path: rewrite(path, change_tensors=raise_a_bound, checksum=False), "was changed after it was written"),
        (lambda path: rewrite(path, lambda header: header.update(format_version=99)), "format version 99.*upgrade"),
        (lambda path: rewrite(path, lambda header: header.pop("sites")), "damaged: KeyError"),
        (lambda path: rewrite(path, lambda header: header.update(sites=[3])), "damaged"),
        (
            lambda path: save_file({"bound": torch.ones(2)}, path, metadata={"unit_fast": "{"}),
            "no bounds file, or is truncated",
        ),
        (lambda path: rewrite(path, change_tensors=lambda tensors: tensors.pop("bound/head.act")), "damaged"),
        (
            lambda path: rewrite(path, lambda header: header["fingerprint"].update(graph="other"), checksum=False),
            "was changed after it was written",
        ),
        (
            lambda path: rewrite(path, lambda header: header["metadata"].update(method="none"), checksum=False),
            "was changed after it was written",
        ),
        (lambda path: rewrite(path, lambda header: header.update(format_version=True)), "holds no bounds"),
        (lambda path: rewrite(path, lambda header: header.update(format_version=-5)), "holds no bounds"),
        (lambda path: rewrite(path, lambda header: header.update(fingerprint=None)), "damaged"),
        (lambda path: rewrite(path, lambda header: header.update(fingerprint={"graph": 1, "tensor": 2})), "damaged"),
        (
            lambda path: save_file({"bound": torch.ones(2)}, path, metadata={"unit_fast": "[" * 100_000}),
            "no bounds file, or is truncated",
        ),
    ],
    ids=[
        "missing",
        "truncated",
        "empty",
        "a pickle",
        "other safetensors",
        "a bound raised",
        "newer format",
        "no sites",
        "wrong sites",
        "broken JSON",
        "a bound missing",
        "another model's name on it",
        "another method's name on it",
        "a bool for a version",
        "a negative version",
        "no fingerprint",
        "a wrong fingerprint",
        "deep JSON",
    ],
)
def test_damaged_files_are_refused(tmp_path, damage, message):
    path = make().save(tmp_path / "bounds.safetensors")
    damage(path)
    with pytest.raises(BoundsMismatchError, match=message):
        Bounds.load(path)


@examples(150)
@given(data=st.data())
def test_no_changed_byte_goes_unnoticed_in_the_bounds(tmp_path, data):
    path = make("channel").save(tmp_path / "bounds.safetensors")
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = Bounds.load(path)
    except BoundsMismatchError:
        return
    # JSON may be written in more ways than one; what it says must be the same.
    original = make("channel")
    assert all(torch.equal(loaded[name], original[name]) for name in original)
    assert (loaded.sites, loaded.fingerprint, loaded.metadata) == (
        original.sites,
        original.fingerprint,
        original.metadata,
    )


def test_no_changed_bit_of_a_tensor_goes_unnoticed(tmp_path):
    path = make("channel").save(tmp_path / "bounds.safetensors")
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for position in range(start, len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(BoundsMismatchError, match="was changed after it was written"):
            Bounds.load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UnitFastError, match="cannot write"):
        make().save(tmp_path / "bounds.safetensors")


def test_tightness_and_summary():
    bounds = make()
    assert bounds.tightness(CONV.name) == pytest.approx(0.5)
    lines = bounds.summary().splitlines()
    assert lines[0] == "102 bounds per neuron at 2 sites"
    median = bounds[CONV.name].median()
    assert lines[3].split() == ["features.0", "relu", "3×4×5", f"{median:.4g}", f"{2 * median:.4g}", "0.50"]
    assert make(clean=False).summary().splitlines()[3].endswith("–")


def test_plot_draws_a_panel_a_site(tmp_path):
    pytest.importorskip("matplotlib")
    figure = make().plot(tmp_path / "bounds.svg")
    assert [panel.get_title() for panel in figure.axes] == [CONV.name, LINEAR.name]
    assert (tmp_path / "bounds.svg").read_text().lstrip().startswith("<?xml")


def test_plot_without_histograms_is_refused():
    pytest.importorskip("matplotlib")
    with pytest.raises(BoundsMismatchError, match="no histograms"):
        make(clean=False).plot()
