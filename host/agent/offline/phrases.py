"""From one phrase to a wish: "run ls", "write hi to a.txt", "every day at 9 say hello"."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Final

from host.agent.offline import when
from host.agent.offline.wishes import (
    Append,
    CancelTask,
    ListFiles,
    ListTasks,
    Read,
    Recall,
    Remember,
    Run,
    Schedule,
    Send,
    Unclear,
    Wish,
    Write,
)

# In what follows a run of white space is never matched by two neighbours, so that matching stays linear.
QUOTED: Final = re.compile(r"```.*?```|`[^`\n]*`|\"[^\"\n]*\"|(?<!\w)'[^'\n]*'(?!\w)", re.DOTALL)
_POLITE: Final = re.compile(
    r"\A\s*(?:(?:please|now|also|(?:can|could|would|will)\s+you)\b[\s,]*)*", re.IGNORECASE
)
_REMIND: Final = re.compile(r"remind\s+me\b[\s,:]*", re.IGNORECASE)
_PATH: Final = r"(?:`([^`]+)`|\"([^\"]+)\"|'([^']+)'|(\S+?))[.!?]?\Z"
_LIST: Final = r"(?:list|show)\s+(?:me\s+)?(?:(?:my|the|all)\s+)*"


def plain(text: str) -> str:
    """Return the phrase without the polite words before it."""
    return _POLITE.sub("", text, count=1).strip()


def begins_with_time(text: str) -> bool:
    """Return whether the phrase says first when something shall happen."""
    return when.at_start(plain(text)) is not None


def wish_of(text: str, now: datetime | None = None, *, alone: bool = True) -> Wish | None:
    """Return what the phrase asks for; ``alone``: also single words, such as "tasks"."""
    words = plain(text)
    scheduled = _scheduled(words, now)
    if scheduled is not None:
        return scheduled
    wish = _order(words)
    if wish is None and alone:
        return _BARE.get(words.lower().rstrip(" .!?"))
    return wish


def _order(words: str) -> Wish | None:
    built = (build(match) for pattern, build in _WISHES if (match := pattern.match(words)))
    return next((wish for wish in built if wish is not None), None)


def _scheduled(words: str, now: datetime | None) -> Wish | None:
    reminder = _REMIND.match(words)
    found = _found(words[reminder.end() :] if reminder else words, bool(reminder))
    if found is None:
        return None
    prompt = f"remind me {found.rest}" if reminder and found.rest else found.rest.removeprefix("to ")
    if not prompt:
        return Unclear(words, "It says when, but not what shall happen then.")
    try:
        moment = found.when(now)
    except when.NoClock:
        return Unclear(words, "I was not told what time it is, so I cannot count from now.")
    if moment is None:
        return Unclear(words, "I cannot read that time.")
    return Schedule(prompt, moment)


def _found(words: str, reminder: bool) -> when.Found | None:
    found = when.at_start(words) or when.at_end(words)
    if found is None or reminder or not found.last:
        return found
    # "run date every hour" is for later; "remember that I swim every monday" and "it rains tomorrow" are not.
    return None if isinstance(_order(found.rest), Remember | Recall | None) else found


def _given(match: re.Match[str], first: int) -> str:
    """Return whichever of the four groups of ``_PATH`` matched."""
    return next(part for part in match.groups()[first - 1 :] if part)


def _unquoted(text: str) -> str:
    if not QUOTED.fullmatch(text):
        return text
    fence = 3 if text.startswith("```") else 1
    return text[fence:-fence].strip("\n") or text


def _line(text: str) -> str:
    return f"{_unquoted(text)}\n"


def _content(text: str) -> str:
    """Quoted text is meant exactly; other text is a line."""
    return _unquoted(text) if QUOTED.fullmatch(text) else _line(text)


def _read(match: re.Match[str]) -> Wish | None:
    path = _given(match, 2)
    # "show mercy" is no file; "show a.txt" and "read mercy" are.
    return Read(path) if match[1].lower() in ("read", "cat") or set("./") & set(path) else None


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE | re.DOTALL)


_WISHES: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Wish | None]], ...]] = (
    (
        _pattern(r"what\s+(?:did|have)\s+i\s+(?:say|said|tell|told|write|written)\b"),
        lambda m: Recall(notes=False),
    ),
    (_pattern(r"what\s+do\s+you\s+(?:remember|know\s+about\s+me)\b"), lambda m: Recall(notes=True)),
    (
        _pattern(r"(?:remember|note(?:\s+down)?|don't\s+forget)\b(?:\s+that\b)?[\s:]+(\S.*)"),
        lambda m: Remember(m[1]),
    ),
    (_pattern(r"(?:run|execute)\b(?:\s+the\s+command\b)?[\s:]+(\S.*)"), lambda m: Run(_unquoted(m[1]))),
    (
        _pattern(rf"append\s+(\S.*?)\sto\s+(?:the\s+)?(?:file\s+)?{_PATH}"),
        lambda m: Append(_line(m[1]), _given(m, 2)),
    ),
    (
        _pattern(rf"write\s+(\S.*)\s(?:to|into|in)\s+(?:the\s+)?(?:file\s+)?{_PATH}"),
        lambda m: Write(_content(m[1]), _given(m, 2)),
    ),
    (
        _pattern(r"(create|overwrite)\s+(?:the\s+|a\s+)?(?:file\s+)?(\S+)\s+with\s+(?:content\s+)?(\S.*)"),
        lambda m: Write(_content(m[3]), m[2], overwrite=m[1].lower() == "overwrite"),
    ),
    (_pattern(rf"{_LIST}(?:scheduled\s+)?tasks\b"), lambda m: ListTasks()),
    (_pattern(r"(?:cancel|delete|remove)\s+(?:the\s+)?task\s+(\S+?)[.!]?\Z"), lambda m: CancelTask(m[1])),
    (_pattern(rf"{_LIST}files\s+(?:in|of|under)\s+{_PATH}"), lambda m: ListFiles(_given(m, 1))),
    (_pattern(rf"{_LIST}files[.!?]?\Z"), lambda m: ListFiles()),
    (
        _pattern(r"tell\s+me\s+(\S.*?)\swhile\s+you(?:\s+are|'re)?\s+work(?:ing)?\b"),
        lambda m: Send(_unquoted(m[1])),
    ),
    (
        _pattern(
            r"send\s+(?:me\s+)?(?:a\s+|the\s+)?message\b(?:\s+(?:saying|that\s+says|with))?[\s:,]+(\S.*)"
        ),
        lambda m: Send(_unquoted(m[1])),
    ),
    (
        _pattern(r"remind\s+me\b(?:\s+(?:to|that|of|about)\b)?[\s,:]+(\S.*)"),
        lambda m: Send(f"Reminder: {m[1]}"),
    ),
    (_pattern(rf"(read|show|open|cat)\s+(?:me\s+)?(?:the\s+)?(?:file\s+)?{_PATH}"), _read),
)
_BARE: Final[dict[str, Wish]] = {"tasks": ListTasks(), "files": ListFiles(), "ls": ListFiles()}
