"""The op family of unit_fast: operators, their eager references and their kernels."""

if __name__ != "unit_fast.kernels":
    # A second copy would register its operators twice. To find it is no error yet: where the working directory is a
    # checkout, transformers looks for a package "kernels", and asks it for its version.
    __path__ = []

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"import this package as unit_fast.kernels, not as {__name__}: there must be one copy of it")
