"""Long Markdown as messages of a bounded length, none of which is broken: fences close and open again.

Lengths are UTF-16 code units, as messengers count them. A part ends where it hurts least: between
paragraphs, else between lines, else between words outside of code, links and emphasis, else anywhere
between two characters (a mark or joiner stays with what it belongs to).
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

LEAST: Final = 128
"""Units that a part must be allowed to have."""

_FENCE: Final = re.compile(
    r"([ \t]{0,32}(?:(?:[-*+>]|\d{1,9}[.)])[ \t]{1,4}){0,8})(`{3,16}|~{3,16})[ \t]*([^`\n]*)$"
)
_SPAN: Final = re.compile(r"`[^`]*`|\[[^\[\]]*\]\([^)]*\)|\*\*[^*]*\*\*|__[^_]*__|~~[^~]*~~")
_JOINERS: Final = frozenset("\u200d\ufe0e\ufe0f")
_LONGEST_INFO: Final = 40
_LOOK_BACK: Final = 32


@dataclass(frozen=True, slots=True)
class _Fence:
    """An open code fence: how it closes, the line that opens it again, and what stands before its lines.

    ``before`` is the room of the lists and quotes that it stands in: it has none where it is opened again.
    """

    mark: str
    opening: str
    before: str = ""

    @property
    def cost(self) -> int:
        """The units that closing it takes, with the line's end."""
        return len(self.before) + len(self.mark) + 1

    def bare(self, line: str) -> str:
        """Return a line of the code without what stands before it."""
        room = len(self.before)
        return line.lstrip(" >") if line[:room].strip(" \t>") else line[room:]


@dataclass(frozen=True, slots=True)
class _Line:
    """A line, or a piece of one (``torn``: the rest follows); the fence that is open after it."""

    text: str
    fence: _Fence | None
    torn: bool = False


@dataclass(slots=True)
class _Part:
    """The part being filled; ``gap`` is the last blank line outside of code."""

    lines: list[str] = field(default_factory=list)
    size: int = 0
    gap: int | None = None
    fence: _Fence | None = None
    again: _Fence | None = None

    def put(self, line: _Line) -> None:
        if self.again is not None and self.lines:
            line = replace(line, text=self.again.bare(line.text))
            self.again = line.fence and self.again
        if not line.text and line.fence is None and self.lines:
            self.gap = len(self.lines)
        self.size += units(line.text) + 1
        self.lines.append(line.text)
        self.fence = line.fence


def units(text: str) -> int:
    """Return the text's length in UTF-16 code units."""
    return len(text) + sum(char > "\uffff" for char in text)


def split(text: str, longest: int) -> list[str]:
    """Return the text in parts of at most ``longest`` (``LEAST`` or more) units; none for a blank text."""
    text = text.strip("\n")
    if units(text) <= longest:
        return [text] if text.strip() else []
    parts: list[str] = []
    part = _Part()
    for line in _lines(text, longest):
        while not _fits(part, line, longest):
            part = _end(part, longest, parts)
        part.put(line)
        if line.torn:
            part.gap = None
            part = _end(part, longest, parts)
    parts.append(_whole(part))
    return [each for each in parts if each.strip()]


def _fits(part: _Part, line: _Line, longest: int) -> bool:
    opened_again = part.fence is not None and part.lines == [part.fence.opening]
    closing = line.fence.cost if line.fence else 0
    return not part.lines or opened_again or part.size + units(line.text) + closing <= longest


def _end(part: _Part, longest: int, parts: list[str]) -> _Part:
    """End the part, at its last gap if that leaves half of it; return the next one, already begun."""
    gap = part.gap
    if gap is not None and 2 * units("\n".join(part.lines[:gap])) >= longest:
        parts.append("\n".join(part.lines[:gap]))
        rest = _Part()
        for text in part.lines[gap + 1 :]:
            rest.put(_Line(text, part.fence))
        return rest
    parts.append(_whole(part))
    following = _Part(again=part.fence)
    if part.fence is not None:
        following.put(_Line(part.fence.opening, part.fence))
    return following


def _whole(part: _Part) -> str:
    """Return the part's text, an open fence closed."""
    if part.fence is None:
        return "\n".join(part.lines)
    if part.lines == [part.fence.opening]:
        return ""
    return "\n".join([*part.lines, ("" if part.again else part.fence.before) + part.fence.mark])


def _lines(text: str, longest: int) -> Iterator[_Line]:
    """Yield the lines, those that no part could hold in pieces."""
    fence: _Fence | None = None
    for line in text.split("\n"):
        inside = fence
        fence = _after(line, fence)
        around = fence or inside
        room = longest - (units(around.opening) + 1 + around.cost if around else 0)
        while units(line) > room:
            piece, line = _cut(line, room, in_code=inside is not None)
            yield _Line(piece, inside, torn=True)
        yield _Line(line, fence)


def _after(line: str, fence: _Fence | None) -> _Fence | None:
    """Return the fence that is open after the line."""
    found = _FENCE.match(line)
    if found is None:
        return fence
    before, mark, info = re.sub(r"[^\s>]", " ", found[1]), found[2], found[3].strip()
    if fence is None:
        return _Fence(mark, f"{mark}{info[:_LONGEST_INFO]}", before)
    return None if mark.startswith(fence.mark) and not info else fence


def _cut(line: str, room: int, *, in_code: bool) -> tuple[str, str]:
    """Cut a line so that its first piece has at most ``room`` units."""
    end = _index_at(line, room)
    if not in_code:
        spans = [match.span() for match in _SPAN.finditer(line[: 2 * end])]
        for at in range(end, end // 2, -1):
            if line[at - 1].isspace() and not any(start < at < stop for start, stop in spans):
                return line[:at].rstrip(), line[at:]
    at = _between_characters(line, end)
    return line[:at], line[at:]


def _index_at(line: str, room: int) -> int:
    """Return how many characters fit into so many units."""
    taken = 0
    for index, char in enumerate(line):
        taken += 2 if char > "\uffff" else 1
        if taken > room:
            return index
    return len(line)


def _between_characters(line: str, end: int) -> int:
    """Return the last place up to ``end`` that doesn't tear a mark or joiner from its character."""
    for at in range(end, max(end - _LOOK_BACK, 1), -1):
        if not (_belongs_to_before(line[at : at + 1]) or line[at - 1] == "\u200d"):
            return at
    return end


def _belongs_to_before(char: str) -> bool:
    is_skin_tone = "\U0001f3fb" <= char <= "\U0001f3ff"
    return bool(char) and (is_skin_tone or char in _JOINERS or unicodedata.combining(char) != 0)
