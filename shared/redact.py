"""The one place that takes secrets out of text, as the last net before text leaves the process.

It is a net and not a wall: a secret that is cut in two, reversed or enciphered passes through it. What keeps
secrets in is that agents and their commands never get them.

A value of fewer than ``SHORTEST`` characters is left alone: such a string turns up in ordinary text by
chance, taking it out would tear that text, and the gap would confirm a guess. Secrets worth the name are
longer.
"""

import base64
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any, Final
from urllib.parse import quote, quote_plus

MARK: Final = "[redacted]"
SHORTEST: Final = 8
FRAGMENT: Final = 6

Span = tuple[int, int]

_GAPS: Final = b" \t\r\n:-"
"""What tools put between the digits of base64 and hexadecimal."""
_ESCAPE: Final = re.compile("%[0-9A-F]{2}")


class Redactor:
    """Replaces each of some secrets, as it is or encoded, by ``[redacted]``.

    Encoded means base64 (standard and URL-safe, also inside a longer encoded text) and hexadecimal, both also
    wrapped or with gaps between their digits, percent-encoding and JSON escapes. Cost grows with the number
    of secrets: some 0.2 µs each per KiB and form.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        known = [secret for secret in secrets if len(secret) >= SHORTEST]
        written = {form for secret in known for form in _forms(secret)}
        encoded = {form for secret in known for form in _encodings(secret)}
        found = written | encoded
        self._written = tuple(sorted(written, key=len, reverse=True))
        self._encoded = tuple({_squeezed(form) for form in encoded})
        self._shortest = min(map(len, self._encoded), default=sys.maxsize)
        self._forms = tuple(sorted(found, key=len, reverse=True))
        self._by_first = {form[0]: [other for other in self._forms if other[0] == form[0]] for form in found}
        self._by_last = {
            form[-1]: [other for other in self._forms if other[-1] == form[-1]] for form in found
        }
        self.longest = max(map(len, self._forms), default=0)
        self._begun = _beginnings(found)

    def text(self, text: str) -> str:
        """Return the text without the secrets; the same object when it has none."""
        spans = self.spans(text)
        return _without(text, spans) if spans else text

    def line(self, text: str) -> str:
        """Return the text without the secrets, nor pieces of them at its two ends.

        For text that a writer may have cut in the middle of a secret, such as log records. A piece is six
        characters or more.
        """
        spans = self.spans(text)
        start = self.beginning_at(text)
        if len(text) - start >= FRAGMENT:
            spans.append((start, len(text)))
        end = self._ending_at(text)
        if end >= FRAGMENT:
            spans.append((0, end))
        return _without(text, _merged(spans)) if spans else text

    def value(self, value: Any) -> Any:
        """Return a JSON-like value with every string in it, keys too, redacted; itself when it has none."""
        strings: list[str] = []
        rest = [value]
        for each in rest:
            if isinstance(each, str):
                strings.append(each)
            elif isinstance(each, dict):
                rest += (*each, *each.values())
            elif isinstance(each, list | tuple):
                rest += each
        # One look at all of them: nearly always there is nothing to take out.
        return self._replaced(value) if self.spans("\0".join(strings)) else value

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self._replaced(key): self._replaced(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._replaced(item) for item in value]
        return value

    def spans(self, text: str) -> list[Span]:
        """Return where secrets stand, merged where they overlap, in order."""
        if len(text) <= self._shortest:
            return self.whole_spans(text)
        found: list[Span] = []
        for form in self._written:
            if form in text:
                found += _occurrences(form, text)
        squeezed = _squeezed(text)
        for digits in self._encoded:
            if digits in squeezed:
                found += [match.span(1) for match in _with_gaps(digits).finditer(text)]
        return _merged(found) if found else found

    def whole_spans(self, text: str) -> list[Span]:
        """Return the same but for encoded secrets with gaps in them."""
        found: list[Span] = []
        for form in self._forms:
            if form in text:
                found += _occurrences(form, text)
        return _merged(found) if found else found

    def is_clean(self, text: str) -> bool:
        """Return True only if the text holds no whole secret, and its end can't be the beginning of one."""
        for form in self._forms:
            if form in text:
                return False
        return self._begun.search(text, max(0, len(text) - self.longest)) is None

    def beginning_at(self, text: str) -> int:
        """Return where the first unfinished secret at the text's end begins; the text's length for none."""
        for start in range(max(0, len(text) - self.longest + 1), len(text)):
            piece = text[start:]
            forms = self._by_first.get(text[start], ())
            if any(len(piece) < len(form) and form.startswith(piece) for form in forms):
                return start
        return len(text)

    def _ending_at(self, text: str) -> int:
        for end in range(min(self.longest - 1, len(text)), FRAGMENT - 1, -1):
            piece = text[:end]
            forms = self._by_last.get(text[end - 1], ())
            if any(len(piece) < len(form) and form.endswith(piece) for form in forms):
                return end
        return 0


@dataclass(slots=True)
class StreamRedactor:
    """Redacts one text that comes in pieces, holding back only what may be a secret's beginning.

    What it holds is always shorter than the longest secret.
    """

    _redactor: Redactor
    held: str = ""
    _covered: int = 0  # so many characters of held belong to a secret whose mark is out already

    def feed(self, piece: str) -> str:
        """Take the next piece; return what is certain by now."""
        text = self.held + piece
        if not self._covered and self._redactor.is_clean(text):
            self.held = ""
            return text
        return self._emit(text, self._redactor.beginning_at(text))

    def flush(self) -> str:
        """Return what was held back; the text is over."""
        return self._emit(self.held, len(self.held))

    def _emit(self, text: str, end: int) -> str:
        """Return ``text[:end]`` redacted; a secret that goes on beyond is marked now, its rest swallowed."""
        spans = self._redactor.whole_spans(text)
        if self._covered:
            spans = _merged([(0, self._covered), *spans])
        out: list[str] = []
        position = covered = 0
        for start, stop in spans:
            if start >= end:
                break
            mark = "" if start == 0 and self._covered else MARK
            out += (text[position:start], mark)
            position, covered = min(stop, end), max(0, stop - end)
        out.append(text[position:end])
        self.held, self._covered = text[end:], covered
        return "".join(out)


def _without(text: str, spans: list[Span]) -> str:
    out: list[str] = []
    position = 0
    for start, end in spans:
        out += (text[position:start], MARK)
        position = end
    return "".join((*out, text[position:]))


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _occurrences(form: str, text: str) -> Iterator[Span]:
    at = text.find(form)
    while at >= 0:
        yield at, at + len(form)
        at = text.find(form, at + 1)


def _beginnings(forms: Iterable[str]) -> re.Pattern[str]:
    """Return what finds the first letters of a form, as many as there are before a text ends."""
    begun = {
        f"{re.escape(form[:size])}{end}" for form in forms for size, end in ((1, r"\Z"), (2, r"\Z"), (3, ""))
    }
    return re.compile("|".join(begun) or "(?!)")


def _forms(secret: str) -> set[str]:
    raw = secret.encode("utf-8", "surrogateescape")
    percent = quote(raw, safe="")
    return {
        secret,
        encode_basestring(secret)[1:-1],
        encode_basestring_ascii(secret)[1:-1],
        percent,
        _ESCAPE.sub(lambda match: match[0].lower(), percent),
        quote(raw),
        quote_plus(raw),
    }


def _squeezed(text: str) -> str:
    # Of all ways the fastest; what becomes of letters beyond ASCII doesn't matter, digits have none.
    return text.encode("utf-8", "surrogatepass").translate(None, _GAPS).decode("latin-1")


@lru_cache(maxsize=256)
def _with_gaps(digits: str) -> re.Pattern[str]:
    # A look-ahead, so that occurrences that overlap are all found.
    between = f"[{re.escape(_GAPS.decode())}]*"
    return re.compile(f"(?=({between.join(map(re.escape, digits))}))")


def _encodings(secret: str) -> Iterator[str]:
    """Yield the forms that consist of digits, between which there may be gaps."""
    raw = secret.encode("utf-8", "surrogateescape")
    yield raw.hex()
    yield raw.hex().upper()
    yield from _base64_forms(raw)


def _base64_forms(raw: bytes) -> Iterator[str]:
    """Yield what of the secret is the same in every base64 text that contains it, for its three alignments.

    A character of base64 stands for six bits: of each end, the characters that share bits with a neighbour
    are left out (RFC 4648, section 4).
    """
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + raw).decode()
        inner = text[(0, 2, 3)[shift] : (shift + len(raw)) * 8 // 6]
        if len(inner) >= SHORTEST:
            yield inner
            yield inner.translate(str.maketrans("+/", "-_"))
