"""From what a person wrote to steps of wishes. Pure: same words, same steps, and no words raise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from host.agent.offline.phrases import QUOTED, begins_with_time, wish_of
from host.agent.offline.wishes import Run, Unclear, Wish, conflict

Steps = tuple[tuple[Wish, ...], ...]

_MAX_CHARS: Final = 20_000
_JOINT: Final = re.compile(
    r"(?:\s?[,;.]|\s)\s?(?:and\s{1,2})?then\b[\s,]{0,2}"
    r"|\s?,?\sand\s(?:also\s)?|\s?[;\n]\s?|,\s|[.!?]\s",
    re.IGNORECASE,
)


@dataclass(slots=True)
class _Segment:
    """Words that make one wish, with the joint before them.

    Its first words tell what a segment is; asking anew for each piece would cost the square of the length.
    ``commands``: what follows with "and then" may be a bare command line.
    """

    joint: str
    pieces: list[str]
    commands: bool
    is_timed: bool = field(init=False)
    is_shell: bool = field(init=False)

    def __post_init__(self) -> None:
        words = self.pieces[0]
        is_run = isinstance(wish_of(words), Run)
        self.commands = self.commands or is_run
        self.is_timed = begins_with_time(words)
        self.is_shell = is_run and not words.rstrip().endswith("`")


def parse(text: str, now: datetime | None = None) -> Steps:
    """Return the steps that the words ask for, none if nothing was understood; ``now`` in UTC, if known.

    Wishes of one step are independent of each other; each step needs the one before it.
    """
    if len(text) > _MAX_CHARS:
        return ()
    segments = _segments(text)
    wishes = [wish_of("".join(segment.pieces), now) for segment in segments]
    if not any(wishes):
        return ()
    steps: list[list[Wish]] = []
    for segment, wish in zip(segments, wishes, strict=True):
        one = wish or Unclear("".join(segment.pieces).strip(), "I did not understand this part.")
        if steps and not _is_then(segment.joint) and not any(conflict(one, other) for other in steps[-1]):
            steps[-1].append(one)
        else:
            steps.append([one])
    return tuple(tuple(step) for step in steps)


def _segments(text: str) -> list[_Segment]:
    """Cut the words where a further wish begins."""
    segments: list[_Segment] = []
    commands = False
    for joint, piece in _pieces(text):
        if not segments or (_may_follow(segments[-1], joint) and wish_of(piece, alone=False) is not None):
            segments.append(_Segment(joint, [piece], commands))
        elif commands and _is_and_then(joint) and piece.strip():
            segments.append(_Segment(joint, [f"run {piece}"], commands))
        else:
            segments[-1].pieces += (joint, piece)
        commands = segments[-1].commands
    return segments


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    masked = QUOTED.sub(lambda quoted: "\0" * len(quoted[0]), text)
    joint, start = "", 0
    for match in _JOINT.finditer(masked):
        yield joint, text[start : match.start()]
        joint, start = text[match.start() : match.end()], match.end()
    yield joint, text[start:]


def _may_follow(segment: _Segment, joint: str) -> bool:
    # What is scheduled takes its sentence along: "every day at 9 run date and then read a.txt".
    if segment.is_timed:
        return bool({";", "\n"} & set(joint))
    # A command keeps the shell's own punctuation: "run if true; then cat a.txt; fi".
    if segment.is_shell:
        return ";" not in joint and bool(joint.strip(" ,.") or "\n" in joint)
    return True


def _is_then(joint: str) -> bool:
    return "then" in joint.lower()


def _is_and_then(joint: str) -> bool:
    return joint.lower().replace(",", " ").split() == ["and", "then"]
