"""Bounds from clean samples: the calibration set, streaming statistics and the methods built on them."""
