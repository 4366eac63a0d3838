"""The README's lines for serving, run as they stand."""

import re
from pathlib import Path

import pytest
import torch

import unit_fast as uf
from tests.runtime.networks import OneConv, bounds_of, images, needs_compiler

README = Path(__file__).parents[1] / "README.md"


@needs_compiler
@pytest.mark.slow
def test_the_lines_for_serving_run_as_they_stand(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(uf.SanitizedModel, "warmup", lambda self, sizes: self(images(sizes[0])))  # one size will do
    section = README.read_text().split("## Serve it")[1].split("\n## ")[0]
    swap, session = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (export,) = re.findall(r"`(uf\.export_onnx\(.*?\))`", section)

    original, x = OneConv().eval(), images(1)
    bounds = bounds_of(original, x)
    bounds.save("bounds.safetensors")
    names = {"uf": uf, "onnxruntime": onnxruntime, "model": original, "x": x, "bounds": bounds}
    exec(export, names)
    exec(swap, names)
    exec(session, names)
    expected = uf.sanitize(original, bounds, x, backend="eager")(x)
    torch.testing.assert_close(names["model"](x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(names["logits"]), expected, rtol=1e-4, atol=1e-5)
