"""JSON Schema. The package that kubernetes-validate stands on takes 1.4 s to import: seldom, and late."""

from __future__ import annotations

from typing import Any

from jsonschema_rs import Draft202012Validator


def validator(schema: Any) -> Draft202012Validator:
    """Return what says whether values are as the schema wants; raises when it is no schema."""
    return Draft202012Validator(schema)


def check_kubernetes(item: dict[str, Any], version: str) -> None:
    """Raise ValidationError unless the object is one of that version of the Kubernetes API."""
    import kubernetes_validate

    kubernetes_validate.validate(item, version, strict=True)
