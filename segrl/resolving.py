"""From a name in a config to a function: a line in one of our tables, or ``package.module:function`` of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any


def resolve(name: str | Callable, table: Mapping[str, Callable] | None = None, what: str = "function") -> Callable:
    """The function called ``name`` in ``table``, or the one that ``package.module:function`` names."""
    if callable(name):
        return name
    if table and name in table:
        return table[name]
    if ":" not in name:
        raise ValueError(f"no {what} is called {name!r}{near(name, table or ())}; or write package.module:function")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{what} {name!r}: no module {error.name!r} can be imported; is its folder on PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{what} {name!r}: the module {module!r} has no {attribute!r}") from error
    if not callable(found):
        raise ValueError(f"{what} {name!r} is a {type(found).__name__}, expected a function")
    return found


def check_options(what: str, function: Callable, given: Sequence[object], options: Mapping[str, Any]) -> None:
    """Refuse options that ``function``, given so many arguments before them, does not take or lacks."""
    try:
        inspect.signature(function).bind(*given, **options)
    except TypeError as error:
        raise ValueError(f"{what} with the options {dict(options)}: {error}") from error


def near(name: str, known: Iterable[str]) -> str:
    """``, did you mean 'tau'?`` or the names there are: the tail of an error sentence."""
    known = [str(one) for one in known]
    close = get_close_matches(str(name), known, n=1)
    if close:
        return f", did you mean {close[0]!r}?"
    return f", expected one of {', '.join(sorted(known))}" if known else ""
