"""What the offline model understands: one table of wishes, and how several of them are joined."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from host.models.offline import when

_NOTES: Final = "MEMORY.md"
_TASKS: Final = "mcp__picoclaw__"
_MAX_CHARS: Final = 20_000
_MAX_INLINE: Final = 120


@dataclass(frozen=True, slots=True)
class Wish:
    """The call that grants a wish, ``to`` and ``done`` in words; without a tool it is only spoken of.

    ``recalls``: the answer says what the person said before. ``unclear``: why nothing can be done.
    """

    tool: str = ""
    input: dict[str, Any] = field(default_factory=dict)
    to: str = ""
    done: str = ""
    recalls: bool = False
    unclear: str = ""

    @property
    def only_reads(self) -> bool:
        """Whether it may be granted beside others: it changes nothing that they could read."""
        return self.tool.removeprefix(_TASKS) in ("", "read_file", "list_dir", "list_tasks", "send_message")


# In the patterns a run of white space is never matched by two neighbours, so that matching stays linear.
_PATH: Final = r"(?P<path>`[^`]+`|\"[^\"]+\"|'[^']+'|\S+?)[.!?]?\Z"
_WITH: Final = r"(?:the\s+|a\s+)?(?:file\s+)?(?P<path>\S+)\s+with\s+(?:content\s+)?(?P<content>\S.*)"
_LIST: Final = r"(?:list|show)\s+(?:me\s+)?(?:(?:my|the|all)\s+)*"
_POLITE: Final = re.compile(
    r"\A\s*(?:(?:please|now|also|(?:can|could|would|will)\s+you)\b[\s,]*)*", re.IGNORECASE
)
_REMIND: Final = re.compile(r"remind\s+me\b[\s,:]*", re.IGNORECASE)
_QUOTED: Final = re.compile(r"```.*?```|`[^`\n]*`|\"[^\"\n]*\"|(?<!\w)'[^'\n]*'(?!\w)", re.DOTALL)
_JOINT: Final = re.compile(
    r"(?:\s?[,;.]|\s)\s?(?:and\s{1,2})?then\b[\s,]{0,2}"
    r"|\s?,?\sand\s(?:also\s)?|\s?[;\n]\s?|,\s|[.!?]\s",
    re.IGNORECASE,
)


def code(text: str) -> str:
    """Return the text as inline code, on one line and not for ever."""
    line = " ".join(text.split()).replace("`", "'")
    return f"`{line}`" if len(line) <= _MAX_INLINE else f"`{line[:_MAX_INLINE]}…`"


@dataclass(frozen=True, slots=True)
class _Kind:
    """A line of the table: the words that ask for it, its tool, and what is said of it in the answer.

    The pattern's groups are the tool's arguments, ``fixed`` those that it always has; the one that is
    ``named`` stands behind ``verb`` and ``past``.
    """

    pattern: str
    tool: str
    verb: str = ""
    past: str = ""
    named: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    recalls: bool = False

    def wish(self, given: Mapping[str, Any]) -> Wish:
        """Return the wish with these arguments."""
        arguments = {**given, **self.fixed}
        what = f" {code(arguments[self.named])}" if self.named else ""
        return Wish(self.tool, arguments, self.verb + what, f"I {self.past}{what}", self.recalls)


_SCHEDULE: Final = _Kind("", f"{_TASKS}schedule_task", "schedule", "scheduled", "prompt")
_LIST_FILES: Final = _Kind(rf"{_LIST}files[.!?]?\Z", "list_dir", "list", "listed", "path", {"path": "."})
_LIST_TASKS: Final = _Kind(
    rf"{_LIST}(?:scheduled\s+)?tasks\b", f"{_TASKS}list_tasks", "list the tasks", "looked at the tasks"
)
_SEND: Final = (f"{_TASKS}send_message", "send the message", "sent the message")
# The table. The first line that fits counts.
_KINDS: Final = (
    _Kind(r"what\s+(?:did|have)\s+i\s+(?:say|said|tell|told)\b", "", recalls=True),
    _Kind(
        r"what\s+do\s+you\s+(?:remember|know\s+about\s+me)\b",
        *("read_file", "read", "read", "path", {"path": _NOTES}, True),
    ),
    _Kind(
        r"(?:remember|note|don't\s+forget)\b(?:\s+that\b)?[\s:]+(?P<note>\S.*)",
        *("append_file", "note that in", "noted that in", "path", {"path": _NOTES}),
    ),
    _Kind(
        r"(?:run|execute)\b(?:\s+the\s+command\b)?[\s:]+(?P<command>\S.*)", "exec", "run", "ran", "command"
    ),
    _Kind(
        rf"append\s+(?P<content>\S.*?)\sto\s+(?:the\s+)?(?:file\s+)?{_PATH}",
        *("append_file", "add to", "added a line to", "path"),
    ),
    _Kind(
        rf"write\s+(?P<content>\S.*)\s(?:to|into|in)\s+(?:the\s+)?(?:file\s+)?{_PATH}",
        *("write_file", "write", "wrote", "path"),
    ),
    _Kind(rf"create\s+{_WITH}", "write_file", "write", "wrote", "path"),
    _Kind(rf"overwrite\s+{_WITH}", "write_file", "overwrite", "overwrote", "path", {"overwrite": True}),
    _LIST_TASKS,
    _Kind(
        r"(?:cancel|delete|remove)\s+(?:the\s+)?task\s+(?P<task_id>\S+?)[.!]?\Z",
        *(f"{_TASKS}cancel_task", "cancel", "cancelled", "task_id"),
    ),
    _Kind(rf"{_LIST}files\s+(?:in|of|under)\s+{_PATH}", "list_dir", "list", "listed", "path"),
    _LIST_FILES,
    _Kind(
        r"send\s+(?:me\s+)?(?:a\s+|the\s+)?message\b(?:\s+(?:saying|that\s+says|with))?[\s:,]+(?P<text>\S.*)",
        *_SEND,
    ),
    _Kind(r"remind\s+me\b(?:\s+(?:to|that|of|about)\b)?[\s,:]+(?P<reminder>\S.*)", *_SEND),
    # "show mercy" is no file; "show a.txt" and "read mercy" are.
    _Kind(
        rf"(?:(?:read|cat)|(?:show|open)(?=.*[./]))\s+(?:me\s+)?(?:the\s+)?(?:file\s+)?{_PATH}",
        *("read_file", "read", "read", "path"),
    ),
)
_WISHES: Final = tuple((re.compile(kind.pattern, re.IGNORECASE | re.DOTALL), kind) for kind in _KINDS)
_ALONE: Final = {"tasks": _LIST_TASKS.wish({}), "files": _LIST_FILES.wish({}), "ls": _LIST_FILES.wish({})}


def parse(text: str, now: datetime | None = None, *, begun: bool = False) -> tuple[tuple[Wish, ...], ...]:
    """Return the steps that the words ask for, none if nothing was understood; ``now`` in UTC, if known.

    Wishes of one step are independent of each other; each step needs the one before it. ``begun``: the time
    that the words name has come.
    """
    if len(text) > _MAX_CHARS:
        return ()
    segments = _segments(text)
    wishes = [_wish("".join(segment.pieces), now, begun) for segment in segments]
    if not any(wishes):
        return ()
    steps: list[list[Wish]] = []
    for segment, found in zip(segments, wishes, strict=True):
        one = found or _unclear("".join(segment.pieces), "I did not understand this part.")
        beside = steps and "then" not in segment.joint.lower()
        if beside and all(wish.only_reads for wish in (one, *steps[-1])):
            steps[-1].append(one)
        else:
            steps.append([one])
    return tuple(map(tuple, steps))


def _wish(text: str, now: datetime | None, begun: bool) -> Wish | None:
    words = _plain(text)
    later = _scheduled(words, now)
    if begun and later:
        words, later = later.input.get("prompt", words), None
    return later or _order(words) or _ALONE.get(words.lower().rstrip(" .!?"))


def _order(words: str) -> Wish | None:
    for pattern, kind in _WISHES:
        if match := pattern.match(words):
            return kind.wish(dict(_argument(name, text) for name, text in match.groupdict().items()))
    return None


def _argument(name: str, text: str) -> tuple[str, str]:
    """Quoted text is meant exactly; what becomes a file's content is a line else."""
    match name:
        case "note":
            return "content", f"- {text}\n"
        case "reminder":
            return "text", f"Reminder: {text}"
        case "content" if not _QUOTED.fullmatch(text):
            return name, f"{text}\n"
    return name, _unquoted(text)


def _scheduled(words: str, now: datetime | None) -> Wish | None:
    reminder = _REMIND.match(words)
    found = when.find(words[reminder.end() :] if reminder else words)
    if found is None or not (reminder or not found.last or _is_for_later(found.rest)):
        return None
    prompt = f"remind me {found.rest}" if reminder and found.rest else found.rest.removeprefix("to ")
    if not prompt:
        return _unclear(words, "It says when, but not what shall happen then.")
    try:
        at = found.when(now)
    except when.Unclear as unclear:
        return _unclear(words, str(unclear))
    task = {"prompt": prompt, "schedule_type": at.kind, "schedule_value": at.value}
    return _SCHEDULE.wish({**task, **({"timezone": at.timezone} if at.timezone else {})})


def _is_for_later(words: str) -> bool:
    # "run date every hour" is for later; "remember that I swim every monday" and "it rains tomorrow" are not.
    order = _order(words)
    return order is not None and not order.recalls and order.input.get("path") != _NOTES


def _unclear(words: str, why: str) -> Wish:
    return Wish(unclear=f"{why} ({code(words)})")


def _plain(text: str) -> str:
    return _POLITE.sub("", text, count=1).strip()


def _unquoted(text: str) -> str:
    if not _QUOTED.fullmatch(text):
        return text
    fence = 3 if text.startswith("```") else 1
    return text[fence:-fence].strip("\n") or text


@dataclass(slots=True)
class _Segment:
    """Words that make one wish, with the joint before them; its first words tell what it is.

    ``commands``: what follows with "and then" may be a bare command line.
    """

    joint: str
    pieces: list[str]
    commands: bool
    is_timed: bool = field(init=False)
    is_shell: bool = field(init=False)

    def __post_init__(self) -> None:
        words = _plain(self.pieces[0])
        found, order = when.find(words), _order(words)
        is_run = order is not None and order.tool == "exec"
        self.commands = self.commands or is_run
        self.is_timed = found is not None and not found.last
        self.is_shell = is_run and not words.rstrip().endswith("`")

    def may_end_at(self, joint: str) -> bool:
        # What is scheduled takes its sentence along: "every day at 9 run date and then read a.txt".
        if self.is_timed:
            return bool({";", "\n"} & set(joint))
        # A command keeps the shell's own punctuation: "run if true; then cat a.txt; fi".
        if self.is_shell:
            return ";" not in joint and bool(joint.strip(" ,.") or "\n" in joint)
        return True


def _segments(text: str) -> list[_Segment]:
    """Cut the words where a further wish begins."""
    segments: list[_Segment] = []
    for joint, piece in _pieces(text):
        last = segments[-1] if segments else None
        words = _plain(piece)
        if last is None or (last.may_end_at(joint) and (_scheduled(words, None) or _order(words))):
            segments.append(_Segment(joint, [piece], last is not None and last.commands))
        elif last.commands and joint.lower().replace(",", " ").split() == ["and", "then"] and words:
            segments.append(_Segment(joint, [f"run {piece}"], commands=True))
        else:
            last.pieces += (joint, piece)
    return segments


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    masked = _QUOTED.sub(lambda quoted: "\0" * len(quoted[0]), text)
    joint, start = "", 0
    for match in _JOINT.finditer(masked):
        yield joint, text[start : match.start()]
        joint, start = text[match.start() : match.end()], match.end()
    yield joint, text[start:]
