"""What the zoo says of a network that goes through, of one that does not, and of one that takes its process along."""

import json
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime", reason="exports are verified in ONNX Runtime")
pytest.importorskip("openvino", reason="exports are compared in OpenVINO")

from benchmarks import zoo, zoo_networks
from benchmarks.tables_zoo import TABLES
from tests.export.models import ResNet


class Branching(nn.Module):
    """Looks at its data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 8, 8) -> (N, 4)
        y = torch.relu(self.conv(x)).mean((2, 3))
        return y if y.sum() > 0 else -y


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], None]:
    """Puts a network in the place of whatever is asked for."""

    def put(model: nn.Module) -> None:
        torch.manual_seed(0)
        monkeypatch.setattr(zoo, "make", lambda _name: (model.eval(), torch.randn(2, 3, 8, 8)))

    return put


def test_a_network_that_goes_through(made):
    made(ResNet())
    row = zoo.tried("any")
    assert row["steps"] == dict.fromkeys(("captured", "identity", "fused", "onnx", "openvino"))
    assert (row["sites"], row["clamps"]) == (5, {"conv2d": 5})


def test_a_network_without_a_plain_graph_is_told_with_the_reason(made):
    made(Branching())
    row = zoo.tried("any")
    assert set(row["steps"]) == {"captured"}
    assert row["steps"]["captured"].startswith("CaptureError: the model has no plain graph")


def test_a_step_that_is_wrong_is_told_and_the_others_go_on(made, monkeypatch):
    made(ResNet())

    def fail(_module: object) -> None:
        raise RuntimeError("no   such\nkernel")

    monkeypatch.setattr(zoo, "fuse", fail)
    steps = zoo.tried("any")["steps"]
    assert steps.pop("fused") == "RuntimeError: no such kernel"
    assert set(steps.values()) == {None}


def test_bounds_at_the_largest_activations_leave_the_model_as_it_is_and_others_do_not(made, monkeypatch):
    made(ResNet())
    monkeypatch.setattr(zoo.uf, "Maximum", lambda: zoo.uf.MeanStd(0.0))
    assert "is off by" in zoo.tried("any")["steps"]["identity"]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks for which a process was asked; "lost" takes it along, "slow" does not end."""
    asked: list[str] = []
    other = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if "--one" not in command:  # platform asks for the processor
            return other(command, **options)
        name = command[command.index("--one") + 1]
        asked.append(name)
        if name.endswith("slow"):
            raise subprocess.TimeoutExpired(command, options["timeout"])
        if name.endswith("lost"):
            return SimpleNamespace(returncode=-9, stdout="", stderr="first\nout of memory\n")
        row = {"steps": {"captured": None, "fused": None}, "sites": 3, "clamps": {"conv2d": 2, "epilogue": 1}}
        return SimpleNamespace(returncode=0, stdout=f"chatter\n{json.dumps(row)}\n", stderr="")

    monkeypatch.setattr(zoo.subprocess, "run", run)
    monkeypatch.setattr(zoo, "NETWORKS", ("torch:good", "torch:lost", "torch:slow", "nothing:absent"))
    return asked


def test_every_installed_network_has_a_row_and_what_is_there_is_kept(processes, tmp_path, monkeypatch):
    assert zoo.main(["--out", str(tmp_path)]) == 0
    assert processes == ["torch:good", "torch:lost", "torch:slow"]
    figures = json.loads((tmp_path / "zoo.json").read_text())["figures"]
    assert figures["versions"] == {"torch": version("torch")}
    reasons = {name: row["steps"]["captured"] for name, row in figures["networks"].items()}
    assert reasons == {
        "torch:good": None,
        "torch:lost": "the process ended with -9: out of memory",
        "torch:slow": f"took more than {zoo.SECONDS} s for all steps",
    }
    zoo.main(["--out", str(tmp_path), "--only", "torch:*"])
    assert len(processes) == 3, "nothing is tried twice"
    zoo.main(["--out", str(tmp_path), "--only", "torch:good", "--until", "compiled"])
    assert processes[3:] == ["torch:good"], "but for a further step"
    monkeypatch.setattr("benchmarks.tables_zoo.read_results", lambda _name: figures)
    assert TABLES["zoo"]()[1] == [f"torch {version('torch')}", "3", "1", *("0 of 0", "1 of 1", "0 of 0", "0 of 0")]
    assert [row[:2] for row in TABLES["zoo_refused"]()[1:]] == [
        ["lost (torch)", "captured"],
        ["slow (torch)", "captured"],
    ]
    assert TABLES["zoo_networks"]()[1] == ["good (torch)", "3", "2", "1"]


def test_a_pattern_that_matches_nothing_is_refused(processes, tmp_path, capsys):
    with pytest.raises(SystemExit):
        zoo.main(["--out", str(tmp_path), "--only", "torch:god"])
    said = " ".join(capsys.readouterr().err.split())
    assert "--only 'torch:god' matches no network that is installed; names are such as torch:good" in said
    assert processes == []


def test_networks_are_told_apart_by_their_library():
    assert len(set(zoo_networks.NETWORKS)) == len(zoo_networks.NETWORKS)
    assert {name.split(":")[0] for name in zoo_networks.NETWORKS} == set(zoo_networks._SOURCES)


@pytest.mark.slow
def test_one_of_torchvision():
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    model, images = zoo_networks.make("torchvision:squeezenet1_1")
    assert model(images).shape == (2, 1000)
