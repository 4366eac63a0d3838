"""Running sanitised models: :func:`sanitize`, its backends, warm-up."""

from unit_fast.runtime.backends import Backend
from unit_fast.runtime.sanitize import SanitizedModel, sanitize

__all__ = ["Backend", "SanitizedModel", "sanitize"]
