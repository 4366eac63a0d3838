"""What the processor says of itself, on made-up ones."""

import pytest

from unit_fast import processor


@pytest.mark.parametrize(
    ("flags", "bits"),
    [
        ("flags : fpu sse2 avx avx2", 7),
        ("flags : fpu sse2 avx512f avx512_vnni", 8),
        ("flags : fpu sse2 avx2 avx_vnni", 8),
        ("Features : fp asimd asimddp", 8),
    ],
)
def test_weights_are_as_wide_as_the_processor_adds_up_right(flags, bits, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"model name : made up\n{flags}\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.weight_bits() == bits


def test_a_system_that_says_nothing_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    assert processor.weight_bits() == 8
