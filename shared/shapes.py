"""Shapes of JSON answers. The host's OpenAPI document is made of them, and type checkers hold whatever writes
such an answer to its fields; at run time it is a plain dictionary.
"""

from __future__ import annotations

from pydantic import ConfigDict, with_config

# pydantic takes the standard library's only from Python 3.12 on.
from typing_extensions import TypedDict


@with_config(ConfigDict(extra="forbid"))
class Shape(TypedDict):
    """An answer's body: exactly these fields."""


class PageShape(Shape):
    """A page of a list; the next one begins at ``next_cursor``."""

    next_cursor: str | None
