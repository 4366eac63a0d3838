"""Everything worth knowing about the kernels on one GPU, in minutes: ``python -m benchmarks.gpu``."""
