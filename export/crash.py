"""Does ONNX Runtime survive the file? Asked of a process of its own, since what crashes takes its process along.

ONNX Runtime 1.32 ends with a segmentation fault when it meets certain transpositions before half-precision MatMuls on
the CPU. ``fusion/postpone_transposes.py`` keeps the known ones out of the file; this is the net below.
"""

import logging
import signal
import subprocess
import sys
from pathlib import Path

import onnx

from unit_fast.errors import ParityError

_SECONDS = 300
# Of a fault of its own; others come from outside, such as SIGKILL where memory runs out.
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
_logger = logging.getLogger(__name__)
_LOAD = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def require_survival(path: Path) -> None:
    """Load ``path``, with all optimisations, in another process, if it holds what ONNX Runtime is known to crash on.

    Raises:
        ParityError: that process was ended by a signal.
    """
    if not any(node.op_type == "MatMul" for node in onnx.load(path, load_external_data=False).graph.node):
        return
    # What fails without crashing is told better by the checks that follow.
    command = [sys.executable, "-c", _LOAD, str(path)]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        _logger.warning(
            "ONNX Runtime takes more than %d s to load the file; whether it would crash is not known", _SECONDS
        )
        return
    if -ended.returncode in _CRASHES:
        name = signal.Signals(-ended.returncode).name
        raise ParityError(
            f"ONNX Runtime crashes ({name}) while it optimises this file for the CPU, and would take whoever serves it "
            'along; use precision="fp32", or verify=False for a file that is served on a GPU alone. No file was written'
        )
