"""The one JSON encoder and decoder (orjson): compact, UTF-8, no NaN."""

from __future__ import annotations

from typing import Any

import orjson

JSONDecodeError = orjson.JSONDecodeError


def dumps(value: Any) -> str:
    """Return compact JSON text."""
    return orjson.dumps(value).decode()


def dump_bytes(value: Any) -> bytes:
    """Return compact JSON as UTF-8 bytes."""
    return orjson.dumps(value)


def loads(text: str | bytes) -> Any:
    """Parse JSON; raises ``JSONDecodeError`` on junk, NaN and invalid UTF-8."""
    return orjson.loads(text)
