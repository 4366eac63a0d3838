"""What ``--model`` and ``--weights`` name, loaded: never by unpickling freely."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from unit_fast.capture import call_arguments
from unit_fast.cli.checkpoint import load_weights
from unit_fast.cli.model_error import ModelError
from unit_fast.cli.pt2_archive import load_archive

AnyModel: TypeAlias = nn.Module | torch.export.ExportedProgram

_WEIGHTS_ONLY = {".pth", ".pt", ".ckpt", ".bin", ".safetensors"}


def load_model(
    spec: str, weights: Path | None = None, model_args: str = "{}", device: torch.device | None = None
) -> AnyModel:
    """Load the model named on the command line, in evaluation mode, on ``device``.

    Args:
        spec: ``FILE.pt2``, ``timm:NAME``, or ``package.module:factory``: a function that returns an ``nn.Module``, a
            module class, or a module. The working folder is importable.
        weights: a file for the module's parameters and buffers.
        model_args: JSON object, keyword arguments of the factory or of ``timm.create_model``.
        device: where to; None is the CPU.

    Raises:
        ModelError: with what is wrong and what to do.
    """
    arguments = _parse_arguments(model_args)
    device = device or torch.device("cpu")
    if spec.endswith(".pt2"):
        if weights is not None or arguments:
            raise ModelError(f"--model {spec} carries its weights and arguments; leave out --weights and --model-args")
        return _archive_on(load_archive(Path(spec)), device)
    if Path(spec).suffix in _WEIGHTS_ONLY or Path(spec).is_file():
        raise ModelError(_not_a_model(spec))
    model = _timm_model(spec, arguments, weights) if spec.startswith("timm:") else _call_factory(spec, arguments)
    if weights is not None:
        load_weights(model, weights)
    return model.eval().to(device)


def runnable(model: AnyModel) -> nn.Module:
    """The model as something that can be called."""
    if isinstance(model, nn.Module):
        return model
    # Guards are Python text from the archive, evaluated at every call; capture does without them too.
    return model.module(check_guards=False)


def check_runs(model: AnyModel, example: Any) -> None:
    """Call the model once, so that data it does not take is found before the work, and in one line.

    Args:
        model: what :func:`load_model` returned.
        example: a batch, a tuple of inputs or a dict of inputs by name, on the model's device.

    Raises:
        ModelError: it raises; says what and for which shapes.
    """
    args, kwargs = call_arguments(example)
    try:
        with torch.no_grad():
            runnable(model)(*args, **kwargs)
    except Exception as error:  # the user's network may raise anything
        shapes = ", ".join(str(tuple(x.shape)) for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        raise ModelError(
            f"the model does not run on a batch of shape {shapes}: {' '.join(str(error).split())}; "
            "are these images of the size (--size) and with the channels it was trained on?"
        ) from error


def make_here_importable() -> None:
    """Let modules in the working folder be imported, before all others, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _parse_arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelError(f"--model-args is not JSON ({error}); expected something like '{{\"depth\": 20}}'") from error
    if not isinstance(arguments, dict):
        raise ModelError(f"--model-args: expected a JSON object, found {type(arguments).__name__}")
    return arguments


def _not_a_model(spec: str) -> str:
    if not Path(spec).exists():
        return f"--model {spec}: there is no such file, and it is no package.module:factory either"
    if Path(spec).suffix == ".py":
        return f"--model {spec} is Python code; name what makes the network in it: --model {_dotted(spec)}:FACTORY"
    if Path(spec).suffix == ".onnx":
        return f"--model {spec} is an ONNX file; unit_fast starts from the PyTorch model it came from"
    return (
        f"--model {spec} holds weights but not the network; name the network with --model package.module:factory "
        f"and give this file as --weights {spec}"
    )


def _archive_on(program: torch.export.ExportedProgram, device: torch.device) -> torch.export.ExportedProgram:
    if device.type == "cpu":
        return program
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def _timm_model(spec: str, arguments: dict[str, Any], weights: Path | None) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"--model {spec} needs timm: pip install timm ({error})") from error
    except RuntimeError as error:
        # timm imports torchvision, whose compiled part refuses a torch it was not built for.
        raise ModelError(f"--model {spec}: timm does not load here: {error}; match torchvision to torch") from error
    if weights is None and not arguments.get("pretrained"):
        raise ModelError(
            f"--model {spec} has no weights; give --weights FILE, or let timm fetch its own with "
            "--model-args '{\"pretrained\": true}'"
        )
    return _called(spec, timm.create_model, {"model_name": spec.removeprefix("timm:"), **arguments})


def _call_factory(spec: str, arguments: dict[str, Any]) -> nn.Module:
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise ModelError(f"--model {spec}: expected FILE.pt2, timm:NAME or package.module:factory")
    if module_name != _dotted(module_name):
        raise ModelError(
            f"--model {spec}: expected the name of a module and no path, such as {_dotted(module_name)}:{attribute}; "
            "run from the folder that holds it"
        )
    try:
        make_here_importable()
        found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ModelError(
            f"--model {spec}: cannot import {module_name}: {error}; run from the folder that holds it, or set "
            "PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ModelError(f"--model {spec}: {error}") from error
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ModelError(f"--model {spec}: importing {module_name} raised {type(error).__name__}: {error}") from error
    if isinstance(found, nn.Module):
        if arguments:
            raise ModelError(f"--model {spec} is a module already and takes no --model-args")
        return found
    if not callable(found):
        raise ModelError(f"--model {spec}: expected a function that returns a torch.nn.Module, found {_kind(found)}")
    return _called(spec, found, arguments)


def _dotted(path: str) -> str:
    """The name of the module in a file of Python code."""
    return ".".join(part for part in Path(path.removesuffix(".py")).parts if part not in ("/", ".."))


def _called(spec: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> nn.Module:
    try:
        model = factory(**arguments)
    except Exception as error:  # a factory may raise anything; the user learns which one and with what
        given = f" with {arguments}" if arguments else ""
        raise ModelError(f"--model {spec}: calling it{given} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"--model {spec}: expected it to return a torch.nn.Module, it returned {_kind(model)}")
    return model


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
