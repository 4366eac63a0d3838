"""What unit_fast costs and what it gains, measured. Results lie in ``benchmarks/results/`` as JSON."""
