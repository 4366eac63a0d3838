"""``--device`` as torch has it, and why there is none of a kind."""

import torch

from unit_fast.errors import BackendUnavailableError


def parse_device(text: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` is CUDA where there is one.

    Raises:
        BackendUnavailableError: no such device here.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise BackendUnavailableError(f"--device {text}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise BackendUnavailableError(f"--device {text}: expected auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise BackendUnavailableError(f"--device {text}: {cuda_absence()}; use --device cpu")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise BackendUnavailableError(f"--device {text}: there are {torch.cuda.device_count()} CUDA devices, from 0 on")
    return device


def cuda_absence() -> str:
    """Why there is no CUDA, in words."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) was built without CUDA"
    return "no CUDA device answers (is there one, with its driver?)"
