"""What is built is what users get: the wheel and the sdist, installed where the checkout is not."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("unit_fast", "kernels", "export")  # as they lie in the checkout


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean, "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, links kept, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("packaging") / "project"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in (*PACKAGES, "tests", "benchmarks"):
        ignore = shutil.ignore_patterns("__pycache__", ".*", "*.tmp")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    return copy


@pytest.fixture(scope="module")
def distributions(project: Path) -> Path:
    """The folder with the sdist, and the wheel that was built from the sdist."""
    out = project.parent / "dist"
    built = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, project, cwd=project.parent)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean_python(wheel: Path) -> Path:
    """The interpreter of a fresh environment that has the wheel, and torch and the rest from this one."""
    home = wheel.parents[1] / "venv"
    assert run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent).returncode == 0
    python = home / "bin" / "python"
    installed = run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel, cwd=home.parent
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    # A .pth file adds the folder with torch but does not run the .pth files in it, so not the editable install either.
    (site_packages,) = home.glob("lib/python*/site-packages")
    (site_packages / "torch_and_the_rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def source_files(project: Path) -> set[str]:
    files = (path for name in PACKAGES for path in (project / name).rglob("*") if path.is_file())
    inside = {path.relative_to(project).as_posix() for path in files}
    return {name if name.startswith("unit_fast/") else f"unit_fast/{name}" for name in inside}


def test_wheel_holds_every_source_file_and_nothing_else(project: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert held == source_files(project)
    assert {"unit_fast/py.typed", "unit_fast/kernels/__init__.py", "unit_fast/export/__init__.py"} <= held


def test_sdist_holds_the_targets_of_the_links(distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}

    assert {"kernels/__init__.py", "export/__init__.py", "pyproject.toml", "LICENSE", "README.md"} <= held


@pytest.mark.parametrize("package", ["unit_fast", "unit_fast.kernels", "unit_fast.export", "unit_fast.cli"])
def test_installed_package_imports(clean_python: Path, package: str) -> None:
    code = f"import {package}, sys; print({package}.__file__)"

    result = run(clean_python, "-c", code, cwd=clean_python.parent)

    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(clean_python.parents[1])


def test_installed_operator_runs(clean_python: Path) -> None:
    code = (
        "import torch, unit_fast.kernels.ops as ops;"
        "print(ops.clamp_bound(torch.tensor([[1.0, 5.0]]), torch.tensor([2.0, 3.0])).tolist())"
    )

    result = run(clean_python, "-c", code, cwd=clean_python.parent)

    assert result.stdout.strip() == "[[1.0, 3.0]]", result.stderr


def test_console_script_runs(clean_python: Path) -> None:
    result = run(clean_python.parent / "unit-fast", "--help", cwd=clean_python.parent, COLUMNS="100")

    assert result.returncode == 0, result.stderr
    assert "calibrate" in result.stdout


@pytest.mark.parametrize(
    ("package", "code"),
    [("kernels", "from kernels import ops"), ("export", "import export")],
    ids=["kernels", "export"],
)
def test_a_second_copy_cannot_be_imported_from_the_root(package: str, code: str) -> None:
    result = run(sys.executable, "-c", code, cwd=ROOT)

    assert result.returncode != 0
    assert f"ImportError: import this package as unit_fast.{package}" in result.stderr


def test_who_looks_for_a_package_called_kernels_in_a_checkout_finds_none_that_it_can_use() -> None:
    """As transformers does at its import, with importlib and getattr."""
    code = "import importlib; print(getattr(importlib.import_module('kernels'), '__version__', 'none'))"
    result = run(sys.executable, "-c", code, cwd=ROOT)

    assert (result.returncode, result.stdout.strip()) == (0, "none"), result.stderr
    submodule = run(sys.executable, "-c", "import kernels.ops", cwd=ROOT)
    assert "No module named 'kernels.ops'" in submodule.stderr


def test_make_names_the_python_it_needs(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "make", "echo"):
        (tools / name).symlink_to(shutil.which(name) or "")
    old = tools / "python3"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac\n')
    old.chmod(0o755)

    result = run("make", "install", f"VENV={tmp_path / 'venv'}", cwd=ROOT, PATH=str(tools))

    assert result.returncode != 0
    assert "unit_fast needs Python 3.11 or newer; found: Python 3.9.2" in result.stderr
    assert not (tmp_path / "venv").exists()
