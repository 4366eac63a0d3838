"""How many examples a property test tries: its own number, the same in every run; or many times that, at random.

A change never fails on an example that another run happened to find. `make search` is where new ones are found.
"""

import os
from typing import Any

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("SEARCH", "1"))


def examples(count: int, **options: Any) -> settings:
    """The settings of a property test that tries ``count`` examples, however long one takes."""
    return settings(
        max_examples=count * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        suppress_health_check=set(HealthCheck) - {HealthCheck.filter_too_much},
        **options,
    )
