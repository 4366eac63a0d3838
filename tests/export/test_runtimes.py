"""Runtimes that are missing are missed by name, with the way to get them."""

import sys

import pytest

from unit_fast.errors import BackendUnavailableError
from unit_fast.export.runtimes import load_runtime


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("onnxruntime", r"ONNX Runtime is needed .*; install unit_fast\[onnxruntime\], or .*-gpu.*, never both"),
        ("openvino", r"OpenVINO is needed .*; install unit_fast\[openvino\]"),
    ],
)
def test_a_runtime_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, module: str, says: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailableError, match=says):
        load_runtime(module)  # type: ignore[arg-type]
