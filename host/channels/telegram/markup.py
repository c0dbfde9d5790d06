"""Markdown as the HTML that Telegram takes (https://core.telegram.org/bots/api#html-style).

Whatever comes in, what goes out is well formed: text is escaped, and tags are only ever written in pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Final

_FENCE: Final = re.compile(r" {0,3}(`{3,16}|~{3,16})[ \t]*([^`\n]*)$")
_LANGUAGE: Final = re.compile(r"[A-Za-z0-9_+.#-]{1,40}")
_HEADING: Final = re.compile(r"#{1,6}\s+(.*)$")
_BULLET: Final = re.compile(r"(\s*)[-*+]\s+(.*)$")
_QUOTE: Final = re.compile(r"\s{0,3}>\s?(.*)$")
_INLINE: Final = re.compile(
    r"(?<!`)(?P<tick>`+)(?P<code>[^`]+)(?P=tick)(?!`)"
    r"|\[(?P<label>[^\[\]\n]+)\]\((?P<url>https?://[^\s()<>]+)\)"
    r"|\*\*(?=\S)(?P<bold>[^\n]+?)(?<=\S)\*\*"
    r"|(?<!\w)__(?=\S)(?P<strong>[^_\n]+?)(?<=\S)__(?!\w)"
    r"|~~(?=\S)(?P<struck>[^~\n]+?)(?<=\S)~~"
    r"|(?<![\w*])\*(?=\S)(?P<italic>[^*\n]+?)(?<=\S)\*(?![\w*])"
    r"|(?<!\w)_(?=\S)(?P<emphasis>[^_\n]+?)(?<=\S)_(?!\w)"
)
_TAGS: Final = {"bold": "b", "strong": "b", "struck": "s", "italic": "i", "emphasis": "i"}
_DEEPEST: Final = 3


def to_html(markdown: str) -> str:
    """Return the text as Telegram's HTML; what isn't Markdown that Telegram can show stays as it is."""
    return "\n".join(_blocks(markdown.split("\n")))


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        if fence is None:
            end = at + 1
            while end < len(lines) and _FENCE.match(lines[end]) is None:
                end += 1
            yield from _prose(lines[at:end])
            at = end
        else:
            end = _end_of_code(lines, at + 1, fence[1])
            yield _code("\n".join(lines[at + 1 : end]), fence[2])
            at = end + 1


def _end_of_code(lines: Sequence[str], start: int, mark: str) -> int:
    for at in range(start, len(lines)):
        found = _FENCE.match(lines[at])
        if found is not None and found[1].startswith(mark) and not found[2].strip():
            return at
    return len(lines)


def _code(text: str, info: str) -> str:
    language = _LANGUAGE.match(info)
    if language is None:
        return f"<pre>{escape(text, quote=False)}</pre>"
    return f'<pre><code class="language-{escape(language[0])}">{escape(text, quote=False)}</code></pre>'


def _prose(lines: Sequence[str]) -> Iterator[str]:
    for kind, group in groupby(lines, _kind):
        texts = list(group)
        if kind == "quote":
            quoted = [found[1] for text in texts if (found := _QUOTE.match(text))]
            yield f"<blockquote>{chr(10).join(_inline(text) for text in quoted)}</blockquote>"
        elif kind == "table":
            yield _code("\n".join(texts), "")
        else:
            yield from (_line(text) for text in texts)


def _kind(line: str) -> str:
    if _QUOTE.match(line):
        return "quote"
    return "table" if line.lstrip().startswith("|") and line.rstrip().endswith("|") else "line"


def _title(text: str) -> str:
    """Return a heading without the marks that may close it, which stand apart."""
    bare = text.rstrip("#")
    return bare.rstrip() if not bare or bare[-1].isspace() else text


def _line(line: str) -> str:
    heading = _HEADING.match(line)
    if heading is not None:
        return f"<b>{escape(_title(heading[1].rstrip()), quote=False)}</b>"
    bullet = _BULLET.match(line)
    return f"{bullet[1]}• {_inline(bullet[2])}" if bullet else _inline(line)


def _inline(text: str, depth: int = 0) -> str:
    out: list[str] = []
    position = 0
    for found in _INLINE.finditer(text):
        out += (escape(text[position : found.start()], quote=False), _span(found, depth))
        position = found.end()
    out.append(escape(text[position:], quote=False))
    return "".join(out)


def _span(found: re.Match[str], depth: int) -> str:
    if found["code"] is not None:
        return f"<code>{escape(found['code'], quote=False)}</code>"
    if found["label"] is not None:
        return f'<a href="{escape(found["url"])}">{escape(found["label"], quote=False)}</a>'
    name = next(name for name in _TAGS if found[name] is not None)
    inner = _inline(found[name], depth + 1) if depth < _DEEPEST else escape(found[name], quote=False)
    return f"<{_TAGS[name]}>{inner}</{_TAGS[name]}>"
