"""Variables of the environment are put back, whatever happens."""

import os

import pytest
import torch

from unit_fast.runtime import compiled
from unit_fast.runtime.variables import keeping


@pytest.mark.parametrize("before", [None, "/there"])
def test_a_variable_is_put_back(monkeypatch, before):
    monkeypatch.delenv("SOME_VARIABLE", raising=False)
    if before is not None:
        monkeypatch.setenv("SOME_VARIABLE", before)

    def fails():
        with keeping("SOME_VARIABLE"):
            os.environ["SOME_VARIABLE"] = "/elsewhere"
            raise RuntimeError("anything")

    with pytest.raises(RuntimeError, match="anything"):
        fails()
    assert os.environ.get("SOME_VARIABLE") == before


def test_where_triton_keeps_its_kernels_is_not_inductor_s_to_say(program, monkeypatch):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    compile_really = torch._inductor.compile

    def as_on_a_gpu(*args, **options):
        os.environ.setdefault("TRITON_CACHE_DIR", "/tmp/torchinductor/triton")
        return compile_really(*args, **options)

    monkeypatch.setattr(torch._inductor, "compile", as_on_a_gpu)
    compiled.Compiled(program).warmup([1])
    assert "TRITON_CACHE_DIR" not in os.environ
