"""Settings of another type than their field's are refused in words, before they fail somewhere in the depths."""

import dataclasses
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from unit_fast.errors import UnitFastError

_NUMBERS: dict[Any, tuple[type, str]] = {int: (Integral, "a whole number"), float: (Real, "a number")}


def plain_numbers(settings: Any) -> None:
    """Check the fields of a frozen dataclass that are declared as numbers, or as numbers or None, and make them so.

    NumPy's numbers and fractions become Python's int and float, which is what the bounds file can hold; True and False
    are no numbers.

    Raises:
        UnitFastError: names the class, the field, what it expects and what came.
    """
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        hint = hints[field.name]
        options = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        numbers = [option for option in options if option in _NUMBERS]
        value = getattr(settings, field.name)
        if not numbers or (value is None and NoneType in options):
            continue
        kind, words = _NUMBERS[numbers[0]]
        if not isinstance(value, kind) or isinstance(value, bool):
            alternative = " or None" if NoneType in options else ""
            raise UnitFastError(
                f"{type(settings).__name__}: {field.name} must be {words}{alternative}; got {value!r}, a "
                f"{type(value).__name__}"
            )
        try:
            object.__setattr__(settings, field.name, numbers[0](value))
        except OverflowError as error:
            raise UnitFastError(
                f"{type(settings).__name__}: {field.name} must be a number that a float can hold; got a larger one"
            ) from error
