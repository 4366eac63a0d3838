"""The op family of unit_fast: operators, their eager references and their kernels."""

if __name__ != "unit_fast.kernels":
    raise ImportError(
        f"import this package as unit_fast.kernels, not as {__name__}: a second copy would register its operators twice"
    )
