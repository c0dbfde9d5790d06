"""What the offline model understands: one table of wishes, and the words that join and time them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final


class Unclear(Exception):
    """The words sound like a time but say too little; the text is the sentence for the person."""


_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAYS: Final = {day: day[:3].upper() for day in _WEEKDAYS} | {"weekday": "MON-FRI", "day": "*"}
_MAX_AHEAD_S: Final = 3660 * 86400

_CLOCK: Final = r"at\s+(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?(?:\s?(?P<half>am|pm)\b)?(?!\w|:\d)"
_UNIT: Final = r"(?P<unit>second|minute|hour|day|week)s?\b"
_FORMS: Final = (
    rf"(?:every|each)\s+(?P<day>{'|'.join(_DAYS)})\b(?:\s+{_CLOCK})?",
    rf"(?:every|each)\s+(?:(?P<count>\d{{1,9}})\s+)?{_UNIT}",
    rf"(?P<ahead>in)\s+(?P<count>\d{{1,9}}|an?)\s+{_UNIT}",
)
_PATTERNS: Final = (
    *(re.compile(rf"\A{form}", re.IGNORECASE) for form in _FORMS),
    *(re.compile(rf"\s{form}[.!]?\Z", re.IGNORECASE) for form in _FORMS),
)
_UNREAD: Final = re.compile(r"at\s+\d", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Time:
    """A phrase of time in a text, the rest of the text, and whether the phrase came last."""

    rest: str
    said: dict[str, str | None]
    last: bool

    def schedule(self, now: datetime | None) -> dict[str, str]:
        """Return the arguments of ``schedule_task``, counted from ``now`` (UTC). Raises ``Unclear``."""
        if not self.last and _UNREAD.match(self.rest):
            raise Unclear("I cannot read that time.")
        if day := self.said.get("day"):
            hour, minute = self._clock()
            return _arguments("cron", f"{minute} {hour} * * {_DAYS[day.lower()]}")
        count, unit = self.said["count"] or "1", str(self.said["unit"])
        seconds = (int(count) if count.isdecimal() else 1) * _SECONDS[unit.lower()]
        if not 0 < seconds <= _MAX_AHEAD_S:
            raise Unclear("I cannot read that time.")
        if "ahead" not in self.said:
            return _arguments("interval", f"{seconds * 1000}")
        if now is None:
            raise Unclear("I was not told what time it is, so I cannot count from now.")
        moment = f"{now + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}"
        return {**_arguments("once", moment), "timezone": "UTC"}

    def _clock(self) -> tuple[int, int]:
        """Return hour and minute; 9:00 when the words name none."""
        hour, minute = int(self.said["hour"] or 9), int(self.said["minute"] or 0)
        if half := (self.said["half"] or "").lower():
            hour = hour % 12 + (12 if half == "pm" else 0) if 1 <= hour <= 12 else 24
        if hour > 23 or minute > 59:
            raise Unclear("I cannot read that time.")
        return hour, minute


def find_time(text: str) -> Time | None:
    """Find a phrase of time that the text begins or ends with."""
    for pattern in _PATTERNS:
        if match := pattern.search(text):
            rest = f"{text[: match.start()]}{text[match.end() :]}".strip(" ,:")
            return Time(rest, match.groupdict(), last=match.start() > 0)
    return None


def _arguments(kind: str, value: str) -> dict[str, str]:
    return {"schedule_type": kind, "schedule_value": value}


_NOTES: Final = "MEMORY.md"
_TASKS: Final = "mcp__picoclaw__"
_MAX_CHARS: Final = 20_000
_MAX_INLINE: Final = 120


@dataclass(frozen=True, slots=True)
class Wish:
    """The call that grants a wish, with words for "I could not ``verb``" and "I ``past``".

    Without a tool it is only spoken of: it asks for what the person said before (``recalls``), or there is a
    reason why nothing can be done (``unclear``).
    """

    tool: str = ""
    input: dict[str, Any] = field(default_factory=dict)
    verb: str = ""
    past: str = ""
    recalls: bool = False
    unclear: str = ""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A line of the table. The pattern's groups are the tool's arguments, ``fixed`` those it always has.

    The argument that is ``named`` stands behind ``verb`` and ``past``.
    """

    pattern: str
    tool: str = ""
    verb: str = ""
    past: str = ""
    named: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    recalls: bool = False

    def wish(self, given: Mapping[str, Any]) -> Wish:
        """Return the wish with these arguments."""
        arguments = {**given, **self.fixed}
        what = f" {code(arguments[self.named])}" if self.named else ""
        return Wish(self.tool, arguments, self.verb + what, self.past + what, self.recalls)


# In the patterns a run of white space is never matched by two neighbours, so that matching stays linear.
_PATH: Final = r"(?P<path>`[^`]+`|\"[^\"]+\"|'[^']+'|\S+?)[.!?]?\Z"
_LIST: Final = r"(?:list|show)\s+(?:me\s+)?(?:(?:my|the|all)\s+)*"
_SEND: Final = f"{_TASKS}send_message"
_SCHEDULE: Final = _Kind("", f"{_TASKS}schedule_task", "schedule", "scheduled", "prompt")

# The table. The first line that fits counts.
_KINDS: Final = (
    _Kind(r"what\s+(?:did|have)\s+i\s+(?:say|said|tell|told)\b", recalls=True),
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
    _Kind(
        r"overwrite\s+(?:the\s+)?(?:file\s+)?(?P<path>\S+)\s+with\s+(?P<content>\S.*)",
        *("write_file", "overwrite", "overwrote", "path", {"overwrite": True}),
    ),
    _Kind(
        rf"(?:{_LIST}(?:scheduled\s+)?)?tasks\b[.!?]?\Z",
        *(f"{_TASKS}list_tasks", "list the tasks", "looked at the tasks"),
    ),
    _Kind(
        r"(?:cancel|delete|remove)\s+(?:the\s+)?task\s+(?P<task_id>\S+?)[.!]?\Z",
        *(f"{_TASKS}cancel_task", "cancel", "cancelled", "task_id"),
    ),
    _Kind(rf"{_LIST}files\s+(?:in|of|under)\s+{_PATH}", "list_dir", "list", "listed", "path"),
    _Kind(
        rf"{_LIST}attachments[.!?]?\Z", *("list_dir", "list", "listed", "path", {"path": "inbox", "depth": 2})
    ),
    _Kind(rf"(?:{_LIST}files|ls)[.!?]?\Z", "list_dir", "list", "listed", "path", {"path": "."}),
    _Kind(
        r"send\s+(?:me\s+)?(?:a\s+|the\s+)?message\b(?:\s+(?:saying|that\s+says|with))?[\s:,]+(?P<text>\S.*)",
        *(_SEND, "send the message", "sent the message"),
    ),
    _Kind(
        r"remind\s+me\b(?:\s+(?:to|that|of|about)\b)?[\s,:]+(?P<reminder>\S.*)",
        *(_SEND, "remind you", "reminded you"),
    ),
    # "show mercy" is no file; "show a.txt" and "read mercy" are.
    _Kind(
        rf"(?:(?:read|cat)|(?:show|open)(?=.*[./]))\s+(?:me\s+)?(?:the\s+)?(?:file\s+)?{_PATH}",
        *("read_file", "read", "read", "path"),
    ),
)
_WISHES: Final = tuple((re.compile(kind.pattern, re.IGNORECASE | re.DOTALL), kind) for kind in _KINDS)

_POLITE: Final = re.compile(
    r"\A\s*(?:(?:please|now|also|(?:can|could|would|will)\s+you)\b[\s,]*)*", re.IGNORECASE
)
_ATTACHED: Final = re.compile(r"\n+\[Attached: [^\n]*\]")
"""The host's lines behind a message that say where its files are."""
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


def parse(text: str, now: datetime | None = None, *, begun: bool = False) -> list[Wish]:
    """Return what the words ask for, in this order, nothing if nothing was understood.

    ``now``: UTC, if known. ``begun``: the time that the words name has come.
    """
    if len(text) > _MAX_CHARS:
        return []
    parts = list(_parts(_ATTACHED.sub("", text)))
    wishes = [_wish(part, now, begun=begun) for part in parts]
    if not any(wishes):
        return []
    why = "I did not understand this part."
    return [wish or _unclear(part, why) for part, wish in zip(parts, wishes, strict=True)]


def _wish(words: str, now: datetime | None, *, begun: bool = False) -> Wish | None:
    words = _POLITE.sub("", words, count=1).strip()
    later = _scheduled(words, now)
    if later and begun:
        words, later = later.input.get("prompt", words), None
    return later or _order(words)


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
    if not _QUOTED.fullmatch(text):
        return name, text
    fence = 3 if text.startswith("```") else 1
    return name, text[fence:-fence].strip("\n") or text


def _scheduled(words: str, now: datetime | None) -> Wish | None:
    reminder = _REMIND.match(words)
    found = find_time(words[reminder.end() :] if reminder else words)
    if found is None or not (reminder or not found.last or _is_for_later(found.rest)):
        return None
    prompt = f"remind me {found.rest}" if reminder and found.rest else found.rest.removeprefix("to ")
    if not prompt:
        return _unclear(words, "It says when, but not what shall happen then.")
    try:
        return _SCHEDULE.wish({"prompt": prompt, **found.schedule(now)})
    except Unclear as unclear:
        return _unclear(words, str(unclear))


def _is_for_later(words: str) -> bool:
    # "run date every hour" is for later; "remember that I swim every day" and "it rains every day" are not.
    order = _order(words)
    return order is not None and not order.recalls and order.input.get("path") != _NOTES


def _unclear(words: str, why: str) -> Wish:
    return Wish(unclear=f"{why} ({code(words)})")


def _parts(text: str) -> Iterator[str]:
    """Cut the words where a further wish begins; the first piece of a part tells what may end it."""
    part, first = "", ""
    for joint, piece in _pieces(text):
        if part and _may_end(first, joint) and _wish(piece, None):
            yield part
            part = ""
        first = first if part else piece
        part += joint + piece if part else piece
    yield part


def _may_end(first: str, joint: str) -> bool:
    words = _POLITE.sub("", first, count=1).strip()
    found = find_time(words)
    # What is scheduled takes its sentence along: "every day at 9 run date and then read a.txt".
    if found is not None and not found.last:
        return ";" in joint or "\n" in joint
    order = _order(words)
    # A command keeps the shell's own punctuation: "run if true; then cat a.txt; fi".
    if order is not None and order.tool == "exec" and not words.endswith("`"):
        return ";" not in joint and bool(joint.strip(" ,.") or "\n" in joint)
    return True


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    masked = _QUOTED.sub(lambda quoted: "\0" * len(quoted[0]), text)
    joint, start = "", 0
    for match in _JOINT.finditer(masked):
        yield joint, text[start : match.start()]
        joint, start = text[match.start() : match.end()], match.end()
    yield joint, text[start:]
