"""Background commands, by conversation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

MAX_RUNNING: Final = 8
MAX_KEPT: Final = 16
_SHOWN_COMMAND: Final = 200


@dataclass(slots=True)
class Job:
    """A background command: running while ``result`` is None."""

    command: str
    descriptor: int
    started: float
    result: dict[str, Any] | None = None


class Jobs:
    """Numbers, keeps and forgets background commands; ended ones are kept for their output, a few."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[int, Job]] = {}
        self._last = 0

    def refusal(self, conversation: str) -> str | None:
        """Return why no further command may start, or None."""
        running = sum(job.result is None for job in self._jobs.get(conversation, {}).values())
        if running < MAX_RUNNING:
            return None
        return f"{running} background commands are running, the limit is {MAX_RUNNING}; kill one first"

    def add(self, conversation: str, command: str, descriptor: int) -> int:
        """Record a started command and return its number."""
        self._last += 1
        self._jobs.setdefault(conversation, {})[self._last] = Job(command, descriptor, time.monotonic())
        return self._last

    def get(self, conversation: str, number: int) -> Job | None:
        """Return a conversation's own job."""
        return self._jobs.get(conversation, {}).get(number)

    def finish(self, conversation: str, number: int, result: dict[str, Any]) -> None:
        """Keep the result; the oldest ended ones make room."""
        jobs = self._jobs.get(conversation, {})
        if number in jobs:
            jobs[number].result = result
        ended = [n for n, job in jobs.items() if job.result is not None]
        for n in ended[: max(0, len(ended) - MAX_KEPT)]:
            del jobs[n]

    def listed(self, conversation: str) -> list[dict[str, Any]]:
        """Return number, command, state and age in milliseconds of each."""
        now = time.monotonic()
        return [
            {
                "job": number,
                "command": job.command[:_SHOWN_COMMAND],
                "state": "running" if job.result is None else job.result.get("ended", "failed"),
                "age_ms": round((now - job.started) * 1000),
            }
            for number, job in self._jobs.get(conversation, {}).items()
        ]

    def forget(self, conversation: str) -> None:
        """Drop a conversation's jobs."""
        self._jobs.pop(conversation, None)
