"""Markdown as the HTML that Telegram takes (https://core.telegram.org/bots/api#html-style).

Whatever comes in, what goes out is well formed: text is escaped, and tags are only ever written in pairs.
Code, addresses and paths keep every character, so rules of CommonMark that take some away are off or narrower
here: what isn't shown in another way stays as it was written.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from types import SimpleNamespace
from typing import Any, Final

from markdown_it import MarkdownIt, helpers
from markdown_it.rules_inline import StateInline, backtick
from markdown_it.token import Token

_OFF: Final = ["autolink", "entity", "html_block", "html_inline", "lheading", "reference"]
_MOST_NESTED: Final = 40
_LANGUAGE: Final = re.compile(r"[A-Za-z0-9_+.#-]{1,40}")
_OPENABLE: Final = re.compile(r"(?:https?|tg)://|mailto:", re.IGNORECASE)
_TAGS: Final = {"strong": "b", "em": "i", "s": "s"}
_MARKS: Final = re.compile(r"[\s>*+.)#0-9-]*")

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}$")
_ADDRESS: Final = re.compile(r"://(?:(?!\]\()[^\s<>`])*(?:(?!\]\()[^\s<>`*_~.,;:!?()\[\]\"'])")
_ESCAPED: Final = re.compile(r"\\([*_`~\[\]()#>+.!|{}-])")
_WINDOWS: Final = re.compile(r"[\"'(*_]*(?:[A-Za-z]:(?:$|\\)|\\\\)")
_RUN: Final = re.compile(r"\*+|_+")
_PATTERN: Final = re.compile(r"\*{1,2}[./\\](?:\S*[^\s*.,;:!?)\"'])?")
_GOES_ON: Final = re.compile(r"[/\\=@]|\.[A-Za-z0-9]")
_IN_WORD: Final = re.compile(r"[A-Za-z0-9]{2}")
_DUNDER: Final = re.compile(r"__[A-Za-z0-9]\w*?__(?!\w)")


def to_html(markdown: str) -> str:
    """Return the text as Telegram's HTML; what isn't Markdown that Telegram can show stays as it is."""
    lines = markdown.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    leaves = list(_Blocks(lines).leaves(_PARSER.parse("\n".join(lines))))
    shown = {number for leaf in leaves for number in range(leaf.start, leaf.end)}
    if all(number in shown or _MARKS.fullmatch(line) for number, line in enumerate(lines)):
        return "".join(_joined(leaves))
    return escape(markdown, quote=False)  # too deep for the parser, which leaves out what it can't hold


@dataclass(slots=True)
class _Leaf:
    """A block that holds no others: where its lines are in the source, its HTML, whether it is in a quote."""

    start: int
    end: int
    html: str
    quoted: bool = False


def _joined(leaves: Sequence[_Leaf]) -> Iterator[str]:
    """Yield the blocks, as far from each other as in the source."""
    before: _Leaf | None = None
    for leaf in leaves:
        if before is not None:
            yield "</blockquote>" if before.quoted and not leaf.quoted else ""
            yield "\n" * (max(leaf.start - before.end, 0) + 1)
        yield "<blockquote>" if leaf.quoted and not (before and before.quoted) else ""
        yield leaf.html
        before = leaf
    yield "</blockquote>" if before and before.quoted else ""


class _Blocks:
    """Reads blocks: how deep in quotes and lists they are, and what begins the item they stand in."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._quotes = 0
        self._lists = 0
        self._marker = ""

    def leaves(self, tokens: Sequence[Token]) -> Iterator[_Leaf]:
        """Yield the blocks that hold no others."""
        item, after_table = 0, 0
        for at, token in enumerate(tokens):
            start, end = token.map or (0, 0)
            if token.type.startswith("blockquote"):
                self._quotes += token.nesting
            elif token.type.startswith(("bullet_list", "ordered_list")):
                self._lists += token.nesting
            elif token.type == "list_item_open":
                self._marker = f"{token.info}{token.markup} " if token.info else "• "
                item = start
            elif token.type == "list_item_close" and self._marker:
                yield self._text("", item, item + 1)
            elif token.type == "table_open":
                after_table = end
                table = "\n".join(line.lstrip(" >") for line in self._lines[start:end])
                yield self._block(_code(table, ""), start, end)
            elif token.type in ("fence", "code_block"):
                yield self._block(_code(token.content.removesuffix("\n"), token.info), start, end)
            elif token.type == "hr":
                yield self._text(self._lines[start].lstrip(" >"), start, end)
            elif token.type in ("paragraph_open", "heading_open") and start >= after_table:
                text = _inline(tokens[at + 1].children or [], bold=token.type == "heading_open")
                yield self._text(text, start, end)

    def _text(self, html: str, start: int, end: int) -> _Leaf:
        hanging = "  " * self._lists
        first = hanging[2:] + self._marker if self._marker else hanging
        self._marker = ""
        return _Leaf(start, end, (first + html.replace("\n", f"\n{hanging}")).rstrip(" "), bool(self._quotes))

    def _block(self, html: str, start: int, end: int) -> _Leaf:
        """Return a block that takes lines of its own, and may not stand in a quote's tag."""
        before = f"{self._text('', start, end).html}\n" if self._marker else ""
        return _Leaf(start, end, before + html)


def _code(text: str, info: str) -> str:
    shown, told = escape(text, quote=False), info.strip()
    if _LANGUAGE.fullmatch(told):
        return f'<pre><code class="language-{escape(told)}">{shown}</code></pre>'
    return f"{escape(told, quote=False)}\n<pre>{shown}</pre>" if told else f"<pre>{shown}</pre>"


def _inline(tokens: Sequence[Token], *, bold: bool) -> str:
    out: list[str] = []
    depths = {"strong": int(bold), "em": 0, "s": 0}
    for at, token in enumerate(tokens):
        name = token.type.rpartition("_")[0]
        if token.type in ("softbreak", "hardbreak"):
            out.append("\n")
        elif token.type == "code_inline":
            out.append(f"<code>{escape(token.content, quote=False)}</code>")
        elif token.type == "image":
            out.append(
                f"{_link(token, 'src', bare=not token.content)}{escape(token.content, quote=False)}</a>"
            )
        elif token.type == "link_open":
            out.append(_link(token, "href", bare=tokens[at + 1].type == "link_close"))
        elif token.type == "link_close":
            out.append("</a>")
        elif name in _TAGS:
            # Telegram shows bold within bold no bolder.
            depths[name] += min(token.nesting, 0)
            out.append(f"<{'/' * (token.nesting < 0)}{_TAGS[name]}>" if depths[name] == 0 else "")
            depths[name] += max(token.nesting, 0)
        else:
            out.append(escape(token.content, quote=False))
    text = "".join(out)
    return f"<b>{text}</b>" if bold else text


def _link(token: Token, attribute: str, *, bare: bool) -> str:
    address = escape(str(token.attrs[attribute]))
    return f'<a href="{address}">{address if bare else ""}'


def _address(state: StateInline, silent: bool) -> bool:
    """Take an address whole, whatever marks stand in it."""
    found = _ADDRESS.match(state.src, state.pos)
    if found is None or _SCHEME.search(state.src, max(state.pos - 31, 0), state.pos) is None:
        return False
    return _verbatim(state, silent, found[0])


def _escape(state: StateInline, silent: bool) -> bool:
    r"""Take ``\*`` as ``*``; a backslash of a path, or at a line's end, is one."""
    if state.src[state.pos] != "\\":
        return False
    word = max(state.src.rfind(" ", 0, state.pos), state.src.rfind("\n", 0, state.pos)) + 1
    found = _ESCAPED.match(state.src, state.pos)
    if found is None or _WINDOWS.match(state.src[word : state.pos]):
        return _verbatim(state, silent, "\\")
    _verbatim(state, silent, found[1])
    state.pos += 1
    return True


def _literal(state: StateInline, silent: bool) -> bool:
    """Take marks as text that are a pattern's, a path's or a name's, not those of emphasis."""
    run = _RUN.match(state.src, state.pos)
    if run is None:
        return False
    before, after = state.src[state.pos - 1 : state.pos] or " ", state.src[run.end() : run.end() + 2]
    name = None if before.isalnum() else _DUNDER.match(state.src, state.pos)
    pattern = _PATTERN.match(state.src, state.pos) if before.isspace() or before in "'\"([" else None
    if pattern and state.src[pattern.end() : pattern.end() + 1] == "*":
        pattern = None
    inner = _IN_WORD.fullmatch(before + after[:1])
    path = before in "/\\=@$" or (not before.isspace() and _GOES_ON.match(after))
    whole = name or pattern or (run if inner or path else None)
    return whole is not None and _verbatim(state, silent, whole[0])


def _verbatim(state: StateInline, silent: bool, text: str) -> bool:
    if not silent:
        state.append_pending(text)
    state.pos += len(text)
    return True


def _span(state: StateInline, silent: bool) -> bool:
    """Take a span of code with the line ends that are in it."""
    start, count = state.pos, len(state.tokens)
    taken = backtick(state, silent)
    if taken and not silent and len(state.tokens) > count:
        code = state.tokens[-1]
        raw = state.src[start + len(code.markup) : state.pos - len(code.markup)]
        code.content = raw if len(raw) == len(code.content) else raw[1:-1]
    return taken


def _destination(text: str, start: int, maximum: int) -> Any:
    """Return a link's address as it is written: it is no place for escapes."""
    found = helpers.parseLinkDestination(text, start, maximum)
    found.str = text[start : found.pos].removeprefix("<").removesuffix(">") if found.ok else found.str
    return found


class _Markdown(MarkdownIt):
    """Addresses as they are written, and only those that Telegram opens."""

    def normalizeLink(self, url: str) -> str:  # noqa: N802 - the library's name
        return url

    def validateLink(self, url: str) -> bool:  # noqa: N802 - the library's name
        return _OPENABLE.match(url) is not None


def _parser() -> MarkdownIt:
    parser = _Markdown("commonmark", {"maxNesting": _MOST_NESTED}).enable(["table", "strikethrough"])
    parser.disable(_OFF)
    parser.inline.ruler.before("escape", "address", _address)
    parser.inline.ruler.at("escape", _escape)
    parser.inline.ruler.at("backticks", _span)
    parser.inline.ruler.before("emphasis", "literal", _literal)
    parser.helpers = SimpleNamespace(  # type: ignore[assignment]
        parseLinkDestination=_destination,
        parseLinkLabel=helpers.parseLinkLabel,
        parseLinkTitle=helpers.parseLinkTitle,
    )
    return parser


_PARSER: Final = _parser()
