"""Who may import whom, and what `import unit_fast` costs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT_IMPORTS = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(cache_dir=None))"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the package in which the links are folders: import-linter does not follow links."""
    shutil.copytree(ROOT / "unit_fast", tmp_path / "unit_fast", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(sources: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(sources), "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-c", LINT_IMPORTS], cwd=sources, env=environment, capture_output=True, text=True, timeout=120
    )


def test_every_import_is_allowed_by_the_design(sources: Path) -> None:
    result = lint_imports(sources)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("importer", "statement"),
    [
        pytest.param("kernels", "from unit_fast.errors import DataError", id="kernels-import-ours"),
        pytest.param("calibration", "import unit_fast.kernels.extra", id="core-imports-a-kernel"),
        pytest.param("calibration", "import unit_fast.runtime", id="core-imports-the-runtime"),
        pytest.param("evaluation", "import unit_fast.capture", id="evaluation-imports-the-core"),
        pytest.param("export", "import unit_fast.cli", id="export-imports-the-cli"),
        pytest.param("runtime", "from unit_fast import DataError", id="runtime-imports-the-front-door"),
    ],
)
def test_a_forbidden_import_is_found(sources: Path, importer: str, statement: str) -> None:
    (sources / "unit_fast/kernels/extra.py").write_text("")
    (sources / "unit_fast" / importer / "trespass.py").write_text(f"def late():\n    {statement}\n")

    result = lint_imports(sources)

    assert result.returncode == 1, result.stdout + result.stderr
    assert f"unit_fast.{importer}.trespass" in result.stdout


def test_a_module_without_a_layer_is_found(sources: Path) -> None:
    (sources / "unit_fast/stray.py").write_text("")

    result = lint_imports(sources)

    assert result.returncode == 1
    assert "stray" in result.stdout


# torch decides for itself what it imports, so only what unit_fast adds to it is counted.
ADDED_MODULES = (
    "import json, sys, torch; before = set(sys.modules); import unit_fast; unit_fast.UnitFastError;"
    "print(json.dumps(sorted(m.split('.')[0] for m in set(sys.modules) - before)))"
)


def test_importing_unit_fast_needs_no_extra() -> None:
    output = subprocess.run(
        [sys.executable, "-c", ADDED_MODULES], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    added = set(json.loads(output))

    assert "unit_fast" in added
    heavy = {"onnx", "onnxruntime", "onnxscript", "openvino", "matplotlib", "triton", "PIL", "sklearn", "scipy"}
    assert not added & (heavy | {"typer", "rich", "click"})


def test_openvino_has_one_core_in_a_process() -> None:
    """A second one's end takes away the stack that Ctrl-C needs: see `shared_core`."""
    folders = ("unit_fast", "export", "kernels", "benchmarks", "tests")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    makers = {path.relative_to(ROOT).as_posix() for path in sources if re.search(r"\bCore\(\)", path.read_text())}
    assert makers == {"export/openvino_model.py"}
