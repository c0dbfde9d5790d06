"""Text that PostgreSQL refuses: U+0000 is written as an escape, so that nothing said is lost.

The escape is U+FDD0, one of Unicode's noncharacters (core specification, 23.7: "reserved for internal use"),
followed by ``0`` for U+0000 and by ``1`` for U+FDD0 itself. All other text is stored as it is.
"""

from __future__ import annotations

from typing import Final

ESCAPE: Final = "\ufdd0"


def encode(text: str) -> str:
    """Return what is stored for a text; raises TypeError for anything else."""
    if not isinstance(text, str):
        raise TypeError("a text is needed")
    if "\0" not in text and ESCAPE not in text:
        return str(text)
    return text.replace(ESCAPE, f"{ESCAPE}1").replace("\0", f"{ESCAPE}0")


def decode(stored: str) -> str:
    """Return the text that is stored."""
    if ESCAPE not in stored:
        return stored
    return stored.replace(f"{ESCAPE}0", "\0").replace(f"{ESCAPE}1", ESCAPE)
