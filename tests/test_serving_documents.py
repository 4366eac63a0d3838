"""The examples of docs/serving.md, taken from the page and run."""

import json
import re
import shlex
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_model
from typer.testing import CliRunner

from tests.export.models import bounds_for
from unit_fast import sanitize
from unit_fast.cli import app
from unit_fast.export import OnnxRuntimeModel, export_onnx
from unit_fast.export.openvino_model import shared_core

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
FACTORY = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 6, 3, 2), nn.ReLU())
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))

net = Net
"""


def examples(section: str, language: str = "python") -> list[str]:
    """The code of a section, a string a block."""
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```", body, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx, and images/ with a folder a class."""
    folder = tmp_path_factory.mktemp("serving")
    scope: dict[str, Any] = {}
    exec(FACTORY, scope)
    torch.manual_seed(0)
    net = scope["net"]().eval()
    drawn = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for number, pixels in enumerate(drawn):
        path = folder / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    x = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255
    bounds = bounds_for(net, x, "channel")
    export_onnx(net, bounds, folder / "model.onnx", example_input=x, verify=False)
    bounds = sanitize(net, bounds, x, backend="eager").fit_threshold([x.repeat(2, 1, 1, 1)]).bounds
    export_onnx(net, bounds, folder / "inspected.onnx", example_input=x, inspect=True, verify=False)
    bounds.save(folder / "bounds.safetensors")
    save_model(net, str(folder / "weights.safetensors"))
    (folder / "nets.py").write_text(FACTORY)
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for entry in prepared.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run(code: str, scope: dict[str, Any] | None = None) -> dict[str, Any]:
    scope = {} if scope is None else scope
    exec(compile(code, str(PAGE), "exec"), scope)
    return scope


def expected(images: np.ndarray) -> torch.Tensor:
    return OnnxRuntimeModel("model.onnx")(torch.from_numpy(images))


def test_every_example_is_run_by_a_test_here() -> None:
    sections = re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)
    assert {section: len(examples(section)) for section in sections} == {
        "ONNX Runtime": 5, "OpenVINO": 1, "Triton Inference Server": 1, "Ray Data": 1,
    }  # fmt: skip


@pytest.mark.usefixtures("here")
def test_onnx_runtime_on_the_cpu() -> None:
    scope = run(examples("ONNX Runtime")[0])
    assert scope["logits"].shape == (8, 5)
    torch.testing.assert_close(torch.from_numpy(scope["logits"]), expected(scope["images"]))


@pytest.mark.usefixtures("here")
def test_onnx_runtime_raises_alarms() -> None:
    blocks = examples("ONNX Runtime")
    scope = run(blocks[1], run(blocks[0]))
    model = OnnxRuntimeModel("inspected.onnx")
    _, measures = model.inspect(torch.from_numpy(scope["images"]))
    torch.testing.assert_close(torch.from_numpy(scope["excess"]), measures["excess"])
    assert scope["suspicious"].tolist() == (measures["excess"] > model.threshold(0.05)).tolist()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("block", "provider"), [(2, "CUDAExecutionProvider"), (3, "TensorrtExecutionProvider")], ids=["cuda", "tensorrt"]
)
def test_onnx_runtime_on_a_gpu(block: int, provider: str) -> None:
    """Where there is none, ONNX Runtime falls back without an error, and the example's check must tell."""
    import onnxruntime

    first, *others = examples("ONNX Runtime")
    scope = run(first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX Runtime says that the provider is none of its build
        if provider in onnxruntime.get_available_providers():
            pytest.skip(f"this ONNX Runtime has the {provider}; whether it starts depends on the machine")
        with pytest.raises(RuntimeError, match=rf"{provider} does not run here: .* fell back to .*CPUExecution"):
            run(others[block - 1], scope)


def test_onnx_runtime_tells_where_every_node_ran(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = examples("ONNX Runtime")
    scope = run(blocks[4], run(blocks[0]))
    assert set(scope["placed"]) == {"CPUExecutionProvider"}
    assert scope["placed"]["CPUExecutionProvider"] >= 5
    assert "CPUExecutionProvider" in capsys.readouterr().out
    assert not list(here.glob("profile*"))


@pytest.mark.usefixtures("here")
def test_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    core = shared_core()
    monkeypatch.setattr(openvino, "Core", lambda: core)  # a second Core's end would break Ctrl-C in later tests
    scope = run(examples("OpenVINO")[0])
    torch.testing.assert_close(torch.from_numpy(scope["logits"]), expected(scope["images"]), rtol=1e-4, atol=1e-5)


@contextmanager
def inference_server(model: Path, config: str) -> Iterator[str]:
    """What of the KServe protocol the example uses, over the repository; the real server needs an image of its own."""
    session = OnnxRuntimeModel(model)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            assert self.path == "/v2/models/net/infer"
            (tensor,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
            assert f'input {{\n  name: "{tensor["name"]}"\n  data_type: TYPE_{tensor["datatype"]}' in config
            assert f"dims: {tensor['shape'][1:]}" in config
            x = np.asarray(tensor["data"], np.float32).reshape(tensor["shape"])
            ((name, logits),) = session.run({tensor["name"]: x}).items()
            output = {"name": name, "datatype": "FP32", "shape": logits.shape, "data": logits.flatten().tolist()}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"model_name": "net", "outputs": [output]}).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_triton_inference_server(here: Path) -> None:
    command, start = examples("Triton Inference Server", "sh")
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    assert program == "unit-fast"
    result = CliRunner().invoke(app, [*arguments, "--no-speed", "--no-verify"])
    assert result.exit_code == 0, result.stderr
    assert "repository" in start
    config = (here / "repository" / "net" / "config.pbtxt").read_text()
    assert "KIND_GPU" in config
    assert "max_queue_delay_microseconds: 200" in config

    (code,) = examples("Triton Inference Server")
    with inference_server(here / "repository" / "net" / "1" / "model.onnx", config) as address:
        scope = run(code.replace("http://localhost:8000", address))
    assert scope["logits"].shape == (8, 5)


@pytest.mark.slow
def test_ray_data(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.data", reason="ray is not installed: pip install unit_fast[serving]")
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
    try:
        run(examples("Ray Data")[0], {"__name__": "__main__"})
        rows = ray.data.read_parquet(str(here / "scores")).take_all()
    finally:
        ray.shutdown()

    assert len(rows) == 12
    for row in rows:
        pixels = np.asarray(Image.open(row["path"]), np.float32).transpose(2, 0, 1)[None] / 255
        logits = expected(pixels)[0]
        np.testing.assert_allclose(row["logits"], logits, rtol=1e-5, atol=1e-5)
        assert row["class"] == int(logits.argmax())
    assert {Path(row["path"]).name for row in rows} == {f"{number}.png" for number in range(12)}
