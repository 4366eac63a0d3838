"""A report as one HTML page that needs nothing else."""

from unit_fast.evaluation.page.document import render

__all__ = ["render"]
