"""Whether a run gets anywhere: calls that were cut off, calls that fail again and again in the same way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Final

from host.agent.endings import CutOff, NoProgress
from host.ports import LIMITS, Reply, ToolResult
from shared.jsons import dump_bytes
from shared.values import Block

TOLD_AFTER: Final = 3
"""Times that a call fails in the same way before the model is told."""

MOST_FAILURES: Final = 8
"""Times that a call may fail in the same way."""

MOST_CUT: Final = 2
"""Calls of a run that a limit may cut off."""

_TIMES: Final = re.compile(r"\d+(?:\.\d+)? ?m?s\b")
"""How long a command took: it doesn't make its result another one."""

_CUT: Final = (
    "This call was not made: it was cut off at {limit}{size}. Do it in smaller parts. For a long file, write "
    "the first part with write_file and add the others with append_file, each in an answer of its own."
)
_AGAIN: Final = (
    "[host: this call has failed in the same way {times} times. Don't repeat it: change it, find another "
    "way, or say what stands in the way. After {most} times the run is ended.]"
)


class Progress:
    """What one run's calls came to, since it last got anywhere: a call with an effect did something new."""

    def __init__(self, read_only: Callable[[str], bool]) -> None:
        self._read_only = read_only
        self._failures: Counter[bytes] = Counter()
        self._done: set[bytes] = set()
        self._cut = 0

    def cut_result(self, reply: Reply, max_tokens: int) -> ToolResult:
        """Return the result of the reply's call that a limit cut off."""
        self._cut += 1
        size = f" ({max_tokens:,} tokens)" if reply.stop_reason == "max_tokens" else ""
        text = _CUT.format(limit=LIMITS[reply.stop_reason], size=size)
        return ToolResult(text, is_error=True, trusted=True)

    def notes(self, calls: list[Block], results: Mapping[str, ToolResult]) -> dict[str, str]:
        """Count a step's calls; return, by the id of a call, what its result has to say beside."""
        failed: dict[bytes, str] = {}
        for call in calls:
            result = results[call["id"]]
            if result.is_error:
                failed[_key(call, result.text)] = call["id"]
            elif not self._read_only(call["name"]):
                self._acted(_key(call))
        self._failures.update(failed.keys())
        return {
            call_id: _AGAIN.format(times=self._failures[key], most=MOST_FAILURES)
            for key, call_id in failed.items()
            if self._failures[key] >= TOLD_AFTER
        }

    def _acted(self, done: bytes) -> None:
        if done not in self._done:
            self._done.add(done)
            self._failures.clear()

    def check(self) -> None:
        """Raise CutOff or NoProgress if the run is to end."""
        if self._cut >= MOST_CUT:
            raise CutOff(
                "The model's calls were cut off twice at the most that one answer may have (max_tokens). Ask "
                "for the work in smaller parts, or raise agents.defaults.max_tokens."
            )
        if max(self._failures.values(), default=0) >= MOST_FAILURES:
            raise NoProgress(
                f"The model repeated a call that failed {MOST_FAILURES} times in the same way. The finished "
                "steps are in the history: say how to go on."
            )


def _key(call: Block, result: str = "") -> bytes:
    asked = [call["name"], sorted(call["input"].items()), _TIMES.sub("", result)]
    return blake2b(dump_bytes(asked), digest_size=16).digest()
