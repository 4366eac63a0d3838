"""Weights into a module: safetensors, or a torch checkpoint of plain tensors."""

import pickletools
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unit_fast.cli.model_error import ModelError

# Under these names training scripts keep the weights beside the epoch, the optimiser and the like.
_WRAPPERS = ("state_dict", "model_state_dict", "net", "model", "weights")
# How torch says that a pickle asks for classes or functions, as opposed to bytes that are no pickle.
_NEEDS_CODE = re.compile(r"GLOBAL|Can only (create new object|build Tensor)|TorchScript")
_CODE = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}
# Put before every name by DataParallel and by torch.compile.
_PREFIXES = ("module.", "_orig_mod.")


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights in ``path`` into ``model``, all of them and nothing else.

    Args:
        model: changed in place.
        path: ``.safetensors``, or a file of ``torch.save`` with tensors in plain containers: a state dict, or one
            under ``state_dict``, ``model_state_dict``, ``net``, ``model`` or ``weights``. A ``module.`` before every
            name is dropped.

    Raises:
        ModelError: unreadable; it needs unpickling of other objects; or names or shapes differ from the module's.
    """
    state = _without_prefixes(_state_dict(_read(path), path))
    own = model.state_dict()
    # BatchNorm's counter came with PyTorch 0.4.1, is unused in evaluation, and is missing in older checkpoints.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    misshapen = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise ModelError(
            f"--weights {path} does not fit the model: {'; '.join(problems)}; is it the same network, "
            "with the same --model-args?"
        )
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"--weights {path}: there is no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    # torch's own words are not passed on: they advise to load the file with weights_only=False.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"--weights {path} cannot be read: {error.strerror or 'the file is damaged'}") from error
    except Exception as error:  # the unpickler raises whatever it stumbles over
        if _NEEDS_CODE.search(str(error)) or _asks_for_code(path):
            raise ModelError(
                f"--weights {path} holds pickled Python objects, and unpickling can run any code that is in the file; "
                "ask its maker for safetensors or for the weights alone, as torch.save(model.state_dict(), new) "
                "writes them"
            ) from error
        raise ModelError(
            f"--weights {path} is damaged, or no checkpoint: expected .safetensors, or a file that torch.save made of "
            "a state dict; copy or download it again"
        ) from error


def _asks_for_code(path: Path) -> bool:
    """Whether a bare pickle, as opposed to an archive of torch.save, names a class or function to call."""
    try:
        with path.open("rb") as file:
            return any(opcode.name in _CODE for opcode, _, _ in pickletools.genops(file))
    except (OSError, ValueError, OverflowError, MemoryError):  # no pickle, or one that ends too early
        return False


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"--weights {path} is damaged, or no safetensors file: {error}") from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    candidates = [content]
    if isinstance(content, Mapping):
        candidates += [content[name] for name in _WRAPPERS if name in content]
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return {str(name): tensor for name, tensor in candidate.items()}
    found = f"the keys {_some(map(str, content))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise ModelError(
        f"--weights {path}: expected a state dict (names and tensors), alone or under {_some(_WRAPPERS, 5)}; "
        f"found {found}"
    )


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        while state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
