import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from unit_fast.cli.model_error import ModelError
from unit_fast.cli.models import load_model, runnable

NETS = """
import torch
from torch import nn

def small(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width))

class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

made = nn.Linear(3, 2)
number = 7

def broken():
    raise RuntimeError("no such layer")

def not_a_module():
    return 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a module of factories."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "faulty.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("nets", "faulty"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("spec", "arguments", "outputs"),
    [
        pytest.param("nets:small", "{}", 4, id="function"),
        pytest.param("nets:small", '{"width": 9}', 9, id="function-with-arguments"),
        pytest.param("nets:Net", "{}", 2, id="class"),
        pytest.param("nets:made", "{}", 2, id="module"),
    ],
)
def test_factory_in_the_working_folder(spec: str, arguments: str, outputs: int) -> None:
    model = load_model(spec, model_args=arguments)

    assert isinstance(model, nn.Module)
    assert not model.training
    assert list(model.parameters())[-1].shape == (outputs,)


def test_weights_go_into_the_model(here: Path) -> None:
    state = {"1.weight": torch.full((4, 12), 2.0), "1.bias": torch.zeros(4)}
    torch.save({"net": state}, here / "weights.pth")

    model = load_model("nets:small", weights=here / "weights.pth")

    assert isinstance(model, nn.Module)
    assert torch.equal(model(torch.ones(1, 12)), torch.full((1, 4), 24.0))


def test_archive_runs_at_any_batch_size(here: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval()
    example = torch.rand(2, 3, 4, 4)
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=({0: batch},)), here / "model.pt2")

    loaded = runnable(load_model("model.pt2"))

    x = torch.rand(5, 3, 4, 4)
    torch.testing.assert_close(loaded(x), model(x))


@pytest.mark.parametrize(
    ("spec", "arguments", "says"),
    [
        pytest.param("nets", "{}", "expected FILE.pt2, timm:NAME or package.module:factory", id="no-factory"),
        pytest.param("nets.py:small", "{}", "name of a module and no path, such as nets:small", id="file"),
        pytest.param("./deep/nets:small", "{}", "no path, such as deep.nets:small", id="path"),
        pytest.param("absent:small", "{}", "cannot import absent.*run from the folder", id="no-module"),
        pytest.param("nets:absent", "{}", "has no attribute 'absent'", id="no-attribute"),
        pytest.param("faulty:net", "{}", "importing faulty raised ZeroDivisionError", id="module-that-raises"),
        pytest.param("nets:broken", "{}", "raised RuntimeError: no such layer", id="factory-that-raises"),
        pytest.param("nets:not_a_module", "{}", "it returned a int", id="not-a-module"),
        pytest.param("nets:number", "{}", "found a int", id="not-callable"),
        pytest.param("nets:small", "width=3", "--model-args is not JSON", id="arguments-not-json"),
        pytest.param("nets:small", "[3]", "expected a JSON object, found list", id="arguments-not-an-object"),
        pytest.param("nets:small", '{"depth": 3}', "unexpected keyword argument 'depth'", id="unknown-argument"),
        pytest.param("nets:made", '{"width": 3}', "takes no --model-args", id="module-with-arguments"),
        pytest.param("model.pt2", "{}", "there is no such file", id="no-archive"),
        pytest.param("absent.pth", "{}", "there is no such file", id="no-file"),
    ],
)
def test_what_cannot_be_loaded_is_said(spec: str, arguments: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_model(spec, model_args=arguments)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("weights.pth", r"holds weights but not the network.*--weights weights.pth"),
        ("model.onnx", "is an ONNX file"),
        ("net.py", "is Python code; name what makes the network in it: --model net:FACTORY"),
    ],
)
def test_a_file_that_is_no_model_is_said(here: Path, name: str, says: str) -> None:
    (here / name).write_bytes(b"")

    with pytest.raises(ModelError, match=says):
        load_model(name)


def test_an_archive_takes_no_weights(here: Path) -> None:
    with pytest.raises(ModelError, match="carries its weights"):
        load_model("model.pt2", weights=here / "weights.pth")


TIMM = """
import nets

def create_model(model_name, width=4, pretrained=False):
    assert model_name == "tiny"
    return nets.small(width)
"""


def test_timm_model_with_weights(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "timm.py").write_text(TIMM)
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    torch.save({"1.weight": torch.ones(2, 12), "1.bias": torch.zeros(2)}, here / "weights.pth")

    model = load_model("timm:tiny", weights=here / "weights.pth", model_args='{"width": 2}')

    assert isinstance(model, nn.Module)
    assert torch.equal(model(torch.ones(1, 12)), torch.full((1, 2), 12.0))
    with pytest.raises(ModelError, match="has no weights; give --weights"):
        load_model("timm:tiny")
    monkeypatch.delitem(sys.modules, "timm", raising=False)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("ImportError('no module named timm')", "needs timm: pip install timm"),
        ("RuntimeError('operator torchvision::nms does not exist')", "match torchvision to torch"),
    ],
)
def test_timm_that_does_not_import(here: Path, monkeypatch: pytest.MonkeyPatch, error: str, says: str) -> None:
    (here / "timm.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "timm", raising=False)

    for weights in (here / "weights.pth", None):
        with pytest.raises(ModelError, match=says):
            load_model("timm:tiny", weights=weights)
