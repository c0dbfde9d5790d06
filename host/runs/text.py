"""What people see of a model's text: nothing internal, no secret, white space exactly, no word twice."""

from __future__ import annotations

from typing import Final

from host.agent.internal import InternalFilter
from shared.redact import Redactor

STEP_GAP: Final = "\n\n"
"""Between the texts of two steps, so that no words are glued together."""


class MarkerFilter:
    """Takes a marker out of a text that comes in pieces, wherever the pieces are split."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._held = ""

    def feed(self, piece: str) -> str:
        """Return what of the text so far can be shown now."""
        marker, text = self._marker, self.without(self._held + piece)
        most = min(len(marker) - 1, len(text))
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
        self._redacted = redactor.stream()
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
        self._redacted = self._redactor.stream()
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
