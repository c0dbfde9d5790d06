"""Replacing text within a text whatever its line ends, and a short account of what that changes.

Nothing here is worse than linear in the text, and nothing is built before its size is known.
"""

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from ..names import Refused

_DIFF_LINES: Final = 60
_BLOCK_LINES: Final = 20
_WIDTH: Final = 200  # characters that are shown before and behind a change
_LINE_END: Final = re.compile(r"\r?\n")
_HALF: Final = re.compile("[\ud800-\udfff]")  # of a pair, or a byte that is no text


class Change(NamedTuple):
    """Where a text changes (``start``, ``end``) and what comes in its place."""

    start: int
    end: int
    new: str


def edit(path: str, text: str, old: str, new: str, *, everywhere: bool, limit: int) -> tuple[str, int, str]:
    """Replace ``old`` where it stands once, or ``everywhere``; returns the text, the number and a diff.

    Lines of ``old`` match lines with either end, and what is new gets the ends of the lines around it, unless
    ``old`` or ``new`` name carriage returns themselves. The text may grow to ``limit`` characters, and
    sentences call it ``path``. Raises ``Refused``.
    """
    old, new = _as_written(text, old, new)
    mixed = _is_mixed(text) and "\r" not in old + new and "\n" in old + new
    count = (text.replace("\r\n", "\n") if mixed else text).count(old)
    if count == 0:
        why = "it must match exactly, white space included"
        if not old.isascii() and _HALF.search(text):
            why = "the file is not UTF-8, and only the ASCII characters of old_text can match"
        raise Refused(f"old_text occurs 0 times in {path}; {why}")
    if count > 1 and not everywhere:
        raise Refused(f"old_text occurs {count} times in {path}; give more context, or pass replace_all=true")
    size = len(text) + count * (len(new) - len(old))
    if size > limit:
        raise Refused(f"{path} would become too large ({size} characters, the limit is {limit})")
    found = _in_mixed(text, old, new) if mixed else _found(text, old, new)
    first = list(itertools.islice(found, _DIFF_LINES))
    after = _applied(text, itertools.chain(first, found), 0, len(text)) if mixed else text.replace(old, new)
    return after, count, _diff(text, first, more=count > len(first))


def _as_written(text: str, old: str, new: str) -> tuple[str, str]:
    """Return both with the text's own line ends, if it has one kind of them."""
    if "\r" in old + new:
        if old in text:
            return old, new  # who names carriage returns means them
        old, new = (part.replace("\r\n", "\n") for part in (old, new))
    if "\r\n" in text and not _is_mixed(text):
        return old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
    return old, new


def _is_mixed(text: str) -> bool:
    return 0 < text.count("\r\n") < text.count("\n")


def _found(text: str, old: str, new: str) -> Iterator[Change]:
    at = text.find(old)
    while at >= 0:
        yield Change(at, at + len(old), new)
        at = text.find(old, at + len(old))


def _in_mixed(text: str, old: str, new: str) -> Iterator[Change]:
    """Yield the changes in a text of which some lines end in CR LF and some in LF.

    ``old`` is looked for in the text with all ends alike; an index there lies as many characters further on
    in the text as pairs came before it. Whole lines that ``old`` and ``new`` share keep their ends.
    """
    pieces = text.split("\r\n")
    starts = list(itertools.accumulate((len(piece) + 1 for piece in pieces), initial=0))
    head, tail = _shared(old.split("\n"), new.split("\n"))
    middle = new[head : len(new) - tail]
    with_pairs = middle.replace("\n", "\r\n")
    following, behind_last = -1, text.rfind("\n") + 1
    for at, stop, _ in _found("\n".join(pieces), old, new):
        start, end = (i + bisect_right(starts, i) - 1 for i in (at + head, stop - tail))
        lines, pairs = text.count("\n", start, end), text.count("\r\n", start, end)
        if not lines:  # then as the shared line before it ends, or the line in which it stands
            if following < end:
                following = text.find("\n", end) if end < behind_last else behind_last - 1
            line_end = start - 1 if head else following
            lines, pairs = 1, int(text[line_end - 1 : line_end] == "\r")
        if pairs in (0, lines):
            yield Change(start, end, with_pairs if pairs else middle)
        else:
            yield Change(start, end, _with_ends(middle, _LINE_END.findall(text, start, end)))


def _with_ends(text: str, ends: list[str]) -> str:
    """Return the text with these line ends, one after the other and the last one for what is left."""
    supply = itertools.chain(ends, itertools.repeat(ends[-1]))
    return re.sub("\n", lambda _: next(supply), text)


def _shared(one: list[str], other: list[str]) -> tuple[int, int]:
    """Return how many characters of whole lines both have at their beginning, and at their end."""
    head = _equal(one[:-1], other[:-1])
    tail = _equal(one[:head:-1], other[:head:-1])
    return sum(len(line) + 1 for line in one[:head]), sum(len(line) + 1 for line in one[len(one) - tail :])


def _equal(one: list[str], other: list[str]) -> int:
    """Return how many lines at the beginning are the same."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _applied(text: str, changes: Iterable[Change], start: int, end: int) -> str:
    """Return ``text[start:end]``, in which the changes lie, as it becomes."""
    parts: list[str] = []
    for change in changes:
        parts += (text[start : change.start], change.new)
        start = change.end
    return "".join([*parts, text[start:end]])


def _diff(text: str, changes: list[Change], *, more: bool) -> str:
    """Return what becomes of the lines that change, the first of them if they are many."""
    shown: list[str] = []
    number, counted = 1, 0
    while changes and len(shown) < _DIFF_LINES:
        start = max(text.rfind("\n", 0, changes[0].start) + 1, changes[0].start - _WIDTH)
        end, taken = start, 0
        while not taken or (
            taken < len(changes) and changes[taken].start <= end + 1
        ):  # on these lines, or the next
            last = changes[taken].end
            line_end = text.find("\n", last)
            end, taken = min(len(text) if line_end < 0 else line_end, last + _WIDTH), taken + 1
        before = text[start:end].split("\n")
        after = _applied(text, changes[:taken], start, end).split("\n")
        head = _equal(before, after)
        tail = _equal(before[head:][::-1], after[head:][::-1])
        number, counted = number + text.count("\n", counted, start), start
        shown.append(f"@@ line {number + head} @@")
        shown += _signed("-", before[head : len(before) - tail]) + _signed(
            "+", after[head : len(after) - tail]
        )
        changes = changes[taken:]
    return _HALF.sub("\ufffd", "\n".join([*shown, *["[... more changes]"] * (more or bool(changes))]))


def _signed(sign: str, lines: list[str]) -> list[str]:
    rest = [f"[... {len(lines) - _BLOCK_LINES} more lines]"] if len(lines) > _BLOCK_LINES else []
    return [sign + line.removesuffix("\r")[: 2 * _WIDTH] for line in lines[:_BLOCK_LINES]] + rest
