"""The one JSON encoder and decoder (orjson): compact, UTF-8, no NaN."""

from __future__ import annotations

from typing import Any, Final

import orjson

_ROOM: Final = 16
JSONDecodeError = orjson.JSONDecodeError


def dumps(value: Any) -> str:
    """Return compact JSON text."""
    return orjson.dumps(value).decode()


def dump_bytes(value: Any) -> bytes:
    """Return compact JSON as UTF-8 bytes."""
    return orjson.dumps(value)


def fits(value: Any) -> bool:
    """Return whether a value can be encoded also where others hold it (requests, stored messages).

    The encoder takes 254 levels (the decoder gives up to 1,024), integers of 64 bits, and no half characters.
    """
    for _ in range(_ROOM):
        value = [value]
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


def loads(text: str | bytes) -> Any:
    """Parse JSON; raises ``JSONDecodeError`` on junk, NaN and invalid UTF-8."""
    return orjson.loads(text)
