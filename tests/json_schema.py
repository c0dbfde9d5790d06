"""JSON Schema's own validator, imported by whoever asks: it takes 1.4 s, every worker would wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator


def validator(schema: Any) -> Draft202012Validator:
    """Return what says whether values are as the schema wants; raises SchemaError when it is no schema."""
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)
