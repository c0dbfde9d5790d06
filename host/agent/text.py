"""What people see of a model's text: nothing internal, no secret, white space exactly, no word twice."""

from dataclasses import dataclass
from typing import Final

from shared.redact import Redactor, StreamRedactor

STEP_GAP: Final = "\n\n"
"""Between the texts of two steps, so that no words are glued together."""

OPEN: Final = "<internal>"
CLOSE: Final = "</internal>"


@dataclass(slots=True)
class InternalFilter:
    """Takes ``<internal>…</internal>`` out of a text that comes in pieces, wherever the pieces are split.

    Nesting is counted. What may be the beginning of a tag is held back until the next piece decides.
    An unclosed part is dropped to its end; a closing tag without an opening one is dropped too.
    """

    _held: str = ""
    _depth: int = 0

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


class MarkerFilter:
    """Takes a marker out of a text that comes in pieces, wherever the pieces are split."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._held = ""

    def feed(self, piece: str) -> str:
        """Return what of the text so far can be shown now."""
        marker, text = self._marker, self.without(self._held + piece)
        most = min(len(marker) - 1, len(text))
        held = 0
        if marker[:1] in text[-most:]:
            held = next((size for size in range(most, 0, -1) if marker.startswith(text[-size:])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def without(self, text: str) -> str:
        """Return a whole text without the marker."""
        return text.replace(self._marker, "") if self._marker else text

    def flush(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


class ShownText:
    """The text of a run as its readers get it: the steps' texts, a gap between them, nothing repeated.

    ``feed`` and ``end_step`` return the next piece to show; all pieces joined are ``text``. When a step
    broke off and is tried again, what its new text has in common with what was shown is not shown twice.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._filter = InternalFilter()
        self._redactor = redactor
        self._redacted = StreamRedactor(redactor)
        self._pieces: list[str] = []
        self._step: list[str] = []
        self._again = ""

    @property
    def text(self) -> str:
        """Everything shown so far."""
        return "".join(self._pieces)

    def feed(self, delta: str) -> str:
        """Take a piece of the model's text."""
        return self._show(self._redacted.feed(self._filter.feed(delta)))

    def whole(self, text: str) -> str:
        """Take all of an answer that needs nothing taken out."""
        self._pieces.append(text)
        return text

    def end_step(self) -> str:
        """The step's text is complete."""
        rest = self._filter.flush()
        if rest or self._redacted.held:
            rest = self._show(self._redacted.feed(rest) + self._redacted.flush())
        self._step, self._again = [], ""
        return rest

    def restart_step(self) -> None:
        """The step's text broke off; the next piece begins it anew."""
        self._filter.flush()
        self._redacted = StreamRedactor(self._redactor)
        if not self._again:
            self._again = "".join(self._step)
        self._step = []

    def _show(self, piece: str) -> str:
        if not piece:
            return ""
        gap = not self._step and bool(self._pieces)
        self._step.append(piece)
        if self._again:
            return self._show_again(piece)
        if gap and not piece.isspace():
            piece = self._gap() + piece
        elif gap:
            # White space alone decides nothing yet; the gap comes with the first word.
            self._step.pop()
            return ""
        self._pieces.append(piece)
        return piece

    def _show_again(self, piece: str) -> str:
        text = "".join(self._step)
        if self._again.startswith(text):
            return ""
        same = text.startswith(self._again)
        piece = text[len(self._again) :] if same else self._gap() + text
        self._again = ""
        self._pieces.append(piece)
        return piece

    def _gap(self) -> str:
        return "" if self.text.endswith("\n\n") else STEP_GAP
