"""Memory that a call frees serves the next one, without a page fault."""

import platform
import subprocess
import sys

import pytest

# A fresh process, which has freed nothing large yet: what 55 blocks of 1 MiB take a round, before and after.
SCRIPT = """
import resource
import torch
from unit_fast.runtime.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def taken():
    for _ in range(5):
        before = faults()
        blocks = [torch.ones(2**18) for _ in range(55)]
        del blocks
    return faults() - before

first = taken()
keep_freed_memory()
print(first, taken())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other rules")
def test_what_was_freed_is_used_again():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, result.stdout.split())
    assert after < 100
    assert after <= before
    if before < 1000:
        pytest.skip(f"this process kept its memory anyway: {before} faults")
