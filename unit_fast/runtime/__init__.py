"""Running sanitised models: :func:`sanitize`, its backends, warm-up."""

from unit_fast.runtime.backends import Backend
from unit_fast.runtime.model import SanitizedModel
from unit_fast.runtime.sanitize import sanitize

__all__ = ["Backend", "SanitizedModel", "sanitize"]
