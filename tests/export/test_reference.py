"""The reference runs without oneDNN too, and leaves the process as it was."""

import threading

import pytest
import torch

from unit_fast.capture import ONE_AT_A_TIME
from unit_fast.export import reference


@pytest.mark.parametrize("before", [True, False])
def test_onednn_is_as_it_was_even_after_ctrl_c_in_between(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    was = torch.backends.mkldnn.enabled
    switched = []

    def interrupted(enabled: bool) -> None:
        torch.backends.mkldnn.set_flags(_enabled=enabled, _fp32_precision=None)
        switched.append(enabled)
        if len(switched) == 1:
            raise KeyboardInterrupt

    torch.backends.mkldnn.set_flags(_enabled=before, _fp32_precision=None)
    monkeypatch.setattr(reference, "_set_onednn", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt), reference._without_onednn():
            pytest.fail("was not interrupted")
        assert torch.backends.mkldnn.enabled == before
        assert switched == [False, before]
    finally:
        torch.backends.mkldnn.set_flags(_enabled=was, _fp32_precision=None)


def test_nothing_is_compiled_while_onednn_is_off() -> None:
    free = []
    with reference._without_onednn():
        other = threading.Thread(target=lambda: free.append(ONE_AT_A_TIME.acquire(blocking=False)))
        other.start()
        other.join()
    assert free == [False]
