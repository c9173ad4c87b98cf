"""From a name in a config to a function: an entry of a table, or the user's ``package.module:function``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any


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
        function = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{what} {name!r}: no module {error.name!r} can be imported; is its folder on PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{what} {name!r}: the module {module!r} has no {attribute!r}") from error
    if not callable(function):
        raise ValueError(f"{what} {name!r} is a {type(function).__name__}, expected a function")
    return function


def check_options(what: str, function: Callable, given: Sequence[object], options: Mapping[str, Any]) -> None:
    """Refuse ``options`` that ``function`` does not take, or too few of them, after the arguments ``given``."""
    signature = inspect.signature(function)
    try:
        signature.bind(*given, **options)
    except TypeError as error:
        named = [name for name, one in signature.parameters.items() if one.kind is not one.VAR_KEYWORD]
        takes = f"its options are {', '.join(named[len(given) :]) or 'none'}"
        raise ValueError(f"{what} with the options {dict(options)}: {error}; {takes}") from error


def near(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: ``, did you mean 'tau'?``, or the known names."""
    known = {str(known_name) for known_name in known}
    close = get_close_matches(str(name), known, n=1)
    if close:
        return f", did you mean {close[0]!r}?"
    return f", expected one of {', '.join(sorted(known))}" if known else ""
