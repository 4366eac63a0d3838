"""Peak memory of calibration is one mini-batch, whatever the number of samples."""

import subprocess
import sys

import pytest

MEMORY = """
import sys, torch
from torch import nn
from unit_fast.calibration import MeanStd, Percentile, calibrate
from unit_fast.calibration.unit import Unit

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
)

def loader(count):
    for _ in range(count // 50):
        yield torch.randn(50, 3, 16, 16), torch.arange(50) % 10

for count, holds in ((500, iter), (500, iter), (5000, iter), (5000, list)):
    open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
    calibrate(model, holds(loader(count)), eval(sys.argv[1]), batch_size=50)
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as Linux reports it")
@pytest.mark.parametrize("method", ["MeanStd()", "Percentile(0.9, capacity=128)", "Unit(steps=3)"])
def test_peak_memory_does_not_grow_with_the_samples(method: str) -> None:
    # Blocks above 64 KiB straight from the system, so that the figure is what is in use and not how the heap was cut.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, "-c", MEMORY, method]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    _, few, many, held = (int(line) / 1024 for line in done.stdout.split())
    assert many - few < 4, f"{few:.1f} MiB at 500 samples, {many:.1f} MiB at 5,000"
    # The first calibration loads code. The measurement sees 5,000 samples of 3 KiB that are held, 15 MiB.
    assert held - many > 10
