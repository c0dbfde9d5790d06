"""Validation errors as sentences: where, which key, what would be right; never the value."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

KINDS: Final = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "missing": "is missing",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "doesn't have the right form",
    "none_required": "must be null",
}

BOUNDS: Final = {
    "greater_than": ("gt", "must be above {}"),
    "greater_than_equal": ("ge", "must be {} or more"),
    "less_than": ("lt", "must be below {}"),
    "less_than_equal": ("le", "must be {} or less"),
}


def first_fault(error: ValidationError) -> tuple[tuple[str | int, ...], str]:
    """Return the path and the sentence's end of the first error."""
    detail = error.errors(include_url=False, include_input=False)[0]
    return detail["loc"], _said(detail)


def _said(detail: ErrorDetails) -> str:
    kind = detail["type"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    if kind in BOUNDS:
        name, text = BOUNDS[kind]
        return text.format(context[name])
    if kind == "literal_error":
        return f"must be one of {context['expected']}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch" and context["pattern"].startswith("^https?"):
        return "must begin with http:// or https://"
    return KINDS.get(kind, "doesn't have the right form")


def did_you_mean(name: str, known: list[str]) -> str:
    """Return ``; did you mean x?`` for the nearest known name, or nothing."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
