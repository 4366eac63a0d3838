"""Folding: clip(relu(z), 0, b) = b · clip(z / b, 0, 1), with 1/b in the layer before and b in the layers after.

What is left is one bound for the whole site, which every runtime fuses and an 8-bit quantiser gives for nothing.
"""

from unit_fast.export.folding.fold import Folding, FoldResult, SiteFold, fold
from unit_fast.export.folding.proof import prove_folding
from unit_fast.export.folding.wanted import fold_for

__all__ = ["FoldResult", "Folding", "SiteFold", "fold", "fold_for", "prove_folding"]
