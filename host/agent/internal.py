"""Words of a model that are for nobody: ``<internal>…</internal>``."""

from __future__ import annotations

from typing import Final

OPEN: Final = "<internal>"
CLOSE: Final = "</internal>"


class InternalFilter:
    """Takes ``<internal>…</internal>`` out of a text that comes in pieces, wherever the pieces are split.

    Nesting is counted. What may be the beginning of a tag is held back until the next piece decides.
    An unclosed part is dropped to its end; a closing tag without an opening one is dropped too.
    """

    def __init__(self) -> None:
        self._held = ""
        self._depth = 0

    def feed(self, piece: str) -> str:
        """Return what of the text so far can be shown now."""
        text = self._held + piece
        self._held = ""
        if "<" not in text:
            return "" if self._depth else text
        shown: list[str] = []
        position = 0
        while (start := text.find("<", position)) >= 0:
            self._show(shown, text[position:start])
            tag = self._tag_at(text, start)
            if tag is None:
                self._held = text[start:]
                return "".join(shown)
            if tag:
                self._depth = self._depth + 1 if tag == OPEN else max(self._depth - 1, 0)
                position = start + len(tag)
            else:
                self._show(shown, "<")
                position = start + 1
        self._show(shown, text[position:])
        return "".join(shown)

    def flush(self) -> str:
        """Return what was held back, at the end of the text, and start anew."""
        held = "" if self._depth else self._held
        self._held, self._depth = "", 0
        return held

    def _show(self, shown: list[str], text: str) -> None:
        if not self._depth and text:
            shown.append(text)

    @staticmethod
    def _tag_at(text: str, start: int) -> str | None:
        """Return the tag that begins here, "" if none does, None if the next piece must tell."""
        ahead = text[start : start + len(CLOSE)].lower()
        for tag in (OPEN, CLOSE):
            if ahead.startswith(tag):
                return tag
        undecided = any(tag.startswith(ahead) for tag in (OPEN, CLOSE))
        return None if undecided else ""


def strip_internal(text: str) -> str:
    """Return a whole text without its internal parts."""
    kept = InternalFilter()
    return kept.feed(text) + kept.flush()
