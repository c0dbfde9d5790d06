"""JSON Schema, imported only when somebody asks: it takes 1.4 s, and every worker would wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator


def validator(schema: Any) -> Draft202012Validator:
    """Return what says whether values are as the schema wants; raises SchemaError when it is no schema."""
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def check_kubernetes(item: dict[str, Any], version: str) -> None:
    """Raise ValidationError unless the object is one of that version of the Kubernetes API."""
    import kubernetes_validate

    kubernetes_validate.validate(item, version, strict=True)
