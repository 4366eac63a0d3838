"""Backdoor triggers: one file and one frozen dataclass each.

A trigger is called with images ``(N, C, H, W)``, floating point pixels in [0, 1], and returns new images of the same
shape, dtype and device; the ones given stay as they are. :func:`parse` makes one from a line of text.
"""

from unit_fast.evaluation.triggers.add import Add
from unit_fast.evaluation.triggers.base import ImageTrigger, describe, stamped
from unit_fast.evaluation.triggers.blend import Blend
from unit_fast.evaluation.triggers.custom import Custom
from unit_fast.evaluation.triggers.patch import Patch
from unit_fast.evaluation.triggers.sinusoid import Sinusoid
from unit_fast.evaluation.triggers.spec import parse
from unit_fast.evaluation.triggers.warp import Warp

__all__ = ["Add", "Blend", "Custom", "ImageTrigger", "Patch", "Sinusoid", "Warp", "describe", "parse", "stamped"]
