"""Small records with a checksum: one line of JSON, padded to a fixed size, torn writes recognised."""

from __future__ import annotations

import zlib
from typing import Any

from shared import jsons
from shared.errors import StoreError


def seal(fields: dict[str, Any], size: int) -> bytes:
    """Return the record as exactly ``size`` bytes; raises StoreError when the fields don't fit."""
    body = jsons.dump_bytes(fields)
    text = b"%08x %b" % (zlib.crc32(body), body)
    if len(text) >= size:
        raise StoreError("The path of STORE_DIR is too long")
    return text.ljust(size - 1) + b"\n"


def unseal(data: bytes) -> dict[str, Any] | None:
    """Return the fields, or None when the record is absent, torn or not one."""
    checksum, _, body = data.rstrip().partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        fields = jsons.loads(body)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None
