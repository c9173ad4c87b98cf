"""From a name in a config to a function: an entry of a table, or the user's ``package.module:function``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from numbers import Integral, Real
from os import PathLike
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Annotation -> what such a value is called, and whether a value is one.
KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("a text", lambda value: isinstance(value, (str, PathLike))),
    NoneType: ("null", lambda value: value is None),
}


def resolve(name: str | Callable, table: Mapping[str, Callable] | None = None, what: str = "function") -> Callable:
    """The function called ``name`` in ``table``, or the function that ``package.module:function`` names."""
    if callable(name):
        return name
    if table and name in table:
        return table[name]
    if ":" not in name:
        raise ValueError(f"no {what} is called {name!r}{near(name, table or ())}; or write package.module:function")
    module, _, attribute = name.partition(":")
    try:
        imported = import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{what} {name!r}: no module {error.name!r} can be imported; is its folder on PYTHONPATH?"
        ) from error
    if not hasattr(imported, attribute):
        raise ValueError(f"{what} {name!r}: the module {module!r} has no {attribute!r}")
    function = getattr(imported, attribute)
    if not callable(function):
        raise ValueError(f"{what} {name!r} is a {type(function).__name__}, expected a function")
    return function


def check_options(what: str, function: Callable, given: Sequence[object], options: Mapping[str, Any]) -> None:
    """Refuse ``options`` that ``function`` does not take after the arguments ``given``, by name, number or type.

    Of its annotations these are compared: int, float, bool, str, None, Literal, and unions of them.
    """
    signature, hints = inspect.signature(function), _hints(function)
    try:
        signature.bind(*given, **options)
    except TypeError as error:
        named = [name for name, taken in signature.parameters.items() if taken.kind is not taken.VAR_KEYWORD]
        takes = ", ".join(named[len(given) :]) or "no options"
        raise ValueError(f"{what} with the options {dict(options)}: {error}; it takes {takes}") from error
    for name, value in options.items():
        expected = _expected(hints.get(name))
        if expected and not any(fits(value) for fits in expected.values()):
            raise ValueError(f"{what}: {name}={value!r}, expected {' or '.join(expected)}")


def _hints(function: Callable) -> dict[str, Any]:
    """The annotations of the function's parameters; none where they cannot be read."""
    try:
        return get_type_hints(function if inspect.isroutine(function) else type(function).__call__)
    except (NameError, AttributeError, TypeError):  # of what is imported for a type checker alone
        return {}


def _expected(hint: Any) -> dict[str, Callable[[Any], bool]]:
    """What a value of the annotation is called, and whether a value is one; empty where any value may be."""
    if hint in KINDS:
        return dict([KINDS[hint]])
    values = get_args(hint)
    if get_origin(hint) is Literal:
        return {f"one of {', '.join(map(str, values))}": lambda value: value in values}
    if get_origin(hint) not in (Union, UnionType):
        return {}
    kinds = [_expected(value) for value in values]
    return {name: fits for kind in kinds for name, fits in kind.items()} if all(kinds) else {}


def near(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: ``, did you mean 'tau'?``, or the known names."""
    known = {str(known_name) for known_name in known}
    close = get_close_matches(str(name), known, n=1)
    if close:
        return f", did you mean {close[0]!r}?"
    return f", expected one of {', '.join(sorted(known))}" if known else ""
