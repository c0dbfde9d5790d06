"""What of a server's result the model gets to see: text up to a limit, images, structured results."""

from __future__ import annotations

from typing import Final

RESULT_LIMIT: Final = 64 * 1024
"""Most text of one result, in bytes of UTF-8."""


def cut(text: str) -> str:
    """Return the text, or its beginning and a note of how much there was."""
    # Every character has at least one byte, so most texts needn't be encoded to be judged.
    if len(text) * 4 <= RESULT_LIMIT:
        return text
    data = text.encode("utf-8", "replace")
    if len(data) <= RESULT_LIMIT:
        return text
    kept = data[:RESULT_LIMIT].decode("utf-8", "ignore")
    return f"{kept}\n[cut: the result had {len(data)} bytes, {RESULT_LIMIT} are shown]"
