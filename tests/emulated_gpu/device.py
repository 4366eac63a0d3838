"""Builds ``device.cpp`` once, and loads it before torch: torch asks only once who its CUDA is."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

NAME = "emulated_gpu"
SOURCE = Path(__file__).with_name("device.cpp")
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
# What the extension gets its symbols from, in the order in which they need each other.
LIBRARIES = ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so", "libtorch.so", "libtorch_python.so")


def refusal() -> str | None:
    """Why there can be no emulated GPU here; None where there can. Does not import torch."""
    pinned = re.findall(r"^torch==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
    installed = importlib.metadata.version("torch").partition("+")[0]
    if pinned != [installed]:
        named = f"torch {' '.join(pinned)}, which constraints.txt names"
        return f"the emulated GPU is made of the internals of {named}; installed is {installed}"
    folder = _torch_folder() / "lib"
    if (folder / "libtorch_cuda.so").exists():
        return "this torch is built with CUDA, whose device the emulated one cannot replace: install a build for CPUs"
    if not all((folder / name).exists() for name in LIBRARIES):
        return f"the emulated GPU is made for torch on Linux; {folder} lacks one of {', '.join(LIBRARIES)}"
    if _compiler() is None:
        return "the emulated GPU is compiled with g++, which is not there; another C++20 compiler can be named by CXX"
    return None


def load() -> ModuleType:
    """The extension, in place as torch's CUDA device. torch is imported afterwards."""
    reason = refusal()
    if reason is not None:
        raise RuntimeError(reason)
    if "torch" in sys.modules:
        raise RuntimeError("the emulated GPU comes before torch, and torch is imported already")
    path = _built()
    for name in LIBRARIES:
        ctypes.CDLL(str(_torch_folder() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)  # registers the hooks that torch looks for when it is imported
    import torch  # noqa: F401 - the module's functions return torch's types

    spec = importlib.util.spec_from_file_location(
        NAME, path, loader=importlib.machinery.ExtensionFileLoader(NAME, str(path))
    )
    assert spec is not None
    assert spec.loader is not None
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    if not extension.install():
        raise RuntimeError("torch asked for its CUDA device before the emulated one was there")
    return extension


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def _built() -> Path:
    """The compiled extension: 15 seconds the first time, kept by source, torch and Python."""
    key = (SOURCE.read_text(), importlib.metadata.version("torch"), sys.version, str(_torch_folder()))
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = caches / "unit_fast-tests" / f"{NAME}-{digest}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    headers = _torch_folder() / "include"
    includes = [headers, headers / "torch/csrc/api/include", sysconfig.get_path("include")]
    compiler = _compiler()
    assert compiler is not None
    unfinished = path.with_suffix(f".{os.getpid()}")
    command = [compiler, "-std=c++20", "-O1", "-w", "-shared", "-fPIC", f"-DTORCH_EXTENSION_NAME={NAME}"]
    command += [f"-isystem{folder}" for folder in includes] + [str(SOURCE), "-o", str(unfinished)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    unfinished.replace(path)  # whole or not at all, whoever else builds it
    return path
