"""ONNX export of sanitised models."""

if __name__ != "unit_fast.export":
    raise ImportError(f"import this package as unit_fast.export, not as {__name__}: there must be one copy of it")
