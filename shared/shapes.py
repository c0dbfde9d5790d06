"""Shapes of JSON answers. The host's OpenAPI document is made of them, and type checkers hold whatever writes
such an answer to its fields; at run time it is a plain dictionary.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, NotRequired, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, with_config

# pydantic takes the standard library's only from Python 3.12 on.
from typing_extensions import TypedDict

from shared.clock import iso


@with_config(ConfigDict(extra="forbid"))
class Shape(TypedDict):
    """An answer's body: exactly these fields."""


class PageShape(Shape):
    """A page of a list; the next one begins at ``next_cursor``."""

    next_cursor: str | None


S = TypeVar("S", bound=Shape)


def view(shape: type[S], value: object, **said: Any) -> S:
    """Return a value in a shape: what is ``said``, and all else that the shape needs by the value's names.

    Where the shape has a text for a number, that is an instant in milliseconds.
    """
    plan = _plan(shape, *said)  # type: ignore[arg-type]  # mypy takes no class for hashable
    shown = plan.order | {name: getattr(value, name) for name in plan.taken} | said
    for name in plan.texts:
        if isinstance(shown.get(name), int):
            shown[name] = iso(shown[name])
    for name in plan.lists:
        shown[name] = list(shown[name])
    return cast(S, shown)


class _Plan(NamedTuple):
    order: dict[str, Any]
    taken: list[str]
    texts: list[str]
    lists: list[str]


@cache
def _plan(shape: Any, *said: str) -> _Plan:
    hints = get_type_hints(shape, include_extras=True)
    needed = [name for name, hint in hints.items() if get_origin(hint) is not NotRequired]
    texts = [name for name, hint in hints.items() if str in (hint, *get_args(hint))]
    lists = [name for name in needed if get_origin(hints[name]) is list]
    return _Plan(dict.fromkeys(needed), [name for name in needed if name not in said], texts, lists)
