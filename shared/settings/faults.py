"""Validation errors as sentences: where, which key, what would be right; never the value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shared.settings.files import SettingsFile
from shared.settings.leaves import KeyPath, Keys, did_you_mean, known_beside

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
    "none_required": "must be null",
}

FORMS: Final = frozenset({"str", "int", "float", "bool"})
"""How pydantic names a form of several behind the key."""

BOUNDS: Final = {
    "greater_than": ("gt", "must be above {}"),
    "greater_than_equal": ("ge", "must be {} or more"),
    "less_than": ("lt", "must be below {}"),
    "less_than_equal": ("le", "must be {} or less"),
}


@dataclass(frozen=True, slots=True)
class Origins:
    """Where the values of a tree came from."""

    environment: Mapping[KeyPath, str]
    security: SettingsFile
    config: SettingsFile

    def place(self, keys: Keys) -> str:
        """Return the place that set ``keys``, or what is above it, for the beginning of a sentence."""
        for end in range(len(keys), 0, -1):
            rest = keys[end:]
            name = self.environment.get(tuple(str(key) for key in keys[:end]))
            if name:
                return f"{name} (environment){': ' + _dotted(rest) if rest else ''}"
            in_file = self.security.origins.get(keys[:end])
            if in_file:
                return self.security.at((*in_file, *rest))
        below = (name for path, name in self.environment.items() if keys and path[: len(keys)] == keys)
        name = next(below, None)
        return self.config.at(keys) if name is None else f"{name} (environment):"


def sentences(error: ValidationError, origins: Origins) -> list[str]:
    """Return what is wrong, each with its place; what may be of several forms is one fault."""
    faults: dict[Keys, list[str]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        keys = detail["loc"]
        of_several = keys[-1:] and keys[-1] in FORMS and detail["type"] in KINDS
        faults.setdefault(keys[:-1] if of_several else keys, []).append(said(detail))
    return [f"{origins.place(keys)} {' or '.join(each)}" for keys, each in faults.items()]


def said(detail: ErrorDetails) -> str:
    """Return what would be right."""
    kind = detail["type"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    if kind in BOUNDS:
        name, text = BOUNDS[kind]
        return text.format(context[name])
    if kind == "literal_error":
        return f"must be one of {context['expected']}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return f"is not a known key{did_you_mean(str(detail['loc'][-1]), known_beside(detail['loc']))}"
    if kind == "string_pattern_mismatch" and context["pattern"].startswith("^https?"):
        return "must begin with http:// or https://"
    return KINDS.get(kind, "doesn't have the right form")


def _dotted(keys: Keys) -> str:
    return ".".join(str(key) for key in keys)
