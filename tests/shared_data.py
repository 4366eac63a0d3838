"""Where the evaluation data lies, when it is there: beside the project, never in it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "shared" / "data"

needs_shared_data = pytest.mark.skipif(not ROOT.is_dir(), reason="the evaluation data beside the project is absent")
