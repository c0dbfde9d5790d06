"""Text of others on a line of ours: nothing in it ends the line, steers a terminal or turns its direction."""

from __future__ import annotations

from typing import Final

_NAMED: Final = {9: r"\t", 10: r"\n", 13: r"\r"}
# C0, DEL and C1; the bidirectional controls (UAX 9); line and paragraph separator, which split lines too.
_STEERING: Final = (
    *range(32), *range(127, 160), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A),
)  # fmt: skip
CONTROLS: Final = {
    code: _NAMED.get(code, f"\\x{code:02x}" if code < 32 else f"\\u{code:04x}") for code in _STEERING
}


def one_line(text: str) -> str:
    """Return the text with line ends and control characters escaped; JSON stays the same JSON."""
    return text.translate(CONTROLS)
