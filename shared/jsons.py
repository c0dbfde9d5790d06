"""The one JSON encoder and decoder (orjson): compact, UTF-8, no NaN."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

_ROOM: Final = 16
_SLICE: Final = 128 * 1024
JSONDecodeError = orjson.JSONDecodeError
loads = orjson.loads
"""Parses JSON; raises ``JSONDecodeError`` on junk, NaN and invalid UTF-8."""
dump_bytes = orjson.dumps
"""Gives compact JSON as UTF-8 bytes."""


def dumps(value: Any, *, indented: bool = False) -> str:
    """Return compact JSON text, or one for people to edit."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indented else None).decode()


def whole(value: Any) -> Any:
    """Return 5.0 as 5: in JSON they are the same number (RFC 8259, section 6)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def repeated(text: bytes | str) -> list[tuple[str | int, ...]]:
    """Return the paths of names that stand more than once in an object, of which the last counts."""
    try:
        return list(_repeated(json.loads(text, object_pairs_hook=_Pairs), ()))
    except (ValueError, RecursionError):
        return []


class _Pairs(list[tuple[str, Any]]):
    """An object with all its names."""


def _repeated(node: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    inside: Iterable[tuple[str | int, Any]] = ()
    if isinstance(node, _Pairs):
        inside = dict(node).items()
        yield from ((*path, name) for name, times in Counter(name for name, _ in node).items() if times > 1)
    elif isinstance(node, list):
        inside = enumerate(node)
    for step, child in inside:
        yield from _repeated(child, (*path, step))


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


def few(raw: bytes, most: int) -> bool:
    """Return whether JSON has at most ``most`` brackets, names and values, without making one of them.

    Bytes of others become objects only after this: 8 MiB of ``[]`` would be 0.4 GB. Looks at most at some
    100 KiB at once, so that on a worker thread it holds nobody up.
    """
    return _structure(raw) <= most or _outside_of_texts(raw, most)


def _structure(raw: bytes) -> int:
    return raw.count(b",") + raw.count(b":") + raw.count(b"[") + raw.count(b"{")


def _outside_of_texts(raw: bytes, most: int) -> bool:
    rest, found, inside = b"", 0, False
    for start in range(0, len(raw), _SLICE):
        piece = rest + raw[start : start + _SLICE]
        rest = b"\\" * ((len(piece) - len(piece.rstrip(b"\\"))) % 2)
        piece = piece[: len(piece) - len(rest)]
        parts = piece.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')
        found += _structure(b"".join(parts[inside::2]))
        inside ^= len(parts) % 2 == 0
        if found > most:
            return False
    return True
