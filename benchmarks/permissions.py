"""Permissions: what fifty rules cost each call, in microseconds; lines that nobody has looked at yet too."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from host.runs.permissions import Gate, compiled
from host.sandbox.shell import parse
from shared.settings.sections import Permission

RULES: Final = (
    *(Permission(tool="exec", match=f"tool{number} *", do="ask") for number in range(24)),
    *(Permission(tool=f"mcp__server{number}__*", do="ask") for number in range(13)),
    *(Permission(tool="write_file", match=f"/etc/{number}/*", do="deny") for number in range(12)),
    Permission(tool="*", do="allow"),
)
CALLS: Final = 500
TRIES: Final = 20
Call = Callable[[int], tuple[str, dict[str, Any]]]
READ: Final = "a new line with quotes, beside what the guard takes to read it"
MADE: Final[dict[str, Call]] = {
    "a command seen before": lambda _: ("exec", {"command": "ls -l src"}),
    "a new command": lambda n: ("exec", {"command": f"ls -l src{n}"}),
    "a new line of three commands": lambda n: ("exec", {"command": f"cd a{n} && git log -3 | head -5"}),
    "a new line with quotes": lambda n: ("exec", {"command": f"grep -r 'word {n}' ."}),
    READ: lambda n: ("exec", {"command": f"grep -r 'word {n}' ."}),
    "a file": lambda n: ("write_file", {"path": f"a{n}", "content": "x"}),
    "a tool of a server": lambda n: ("mcp__server3__x", {"number": n}),
}


async def main() -> dict[str, float]:
    """Return the time of a call's judgement, the best of several tries: the machine does other things too."""
    gate = Gate([compiled(RULES)], Path("/workspace"))
    return {
        f"{name} (µs)": min(_each(gate, call, start, read=name == READ) for start in range(TRIES))
        for name, call in MADE.items()
    }


def _each(gate: Gate, call: Call, start: int, *, read: bool) -> float:
    """Return what one call takes; ``read``: its line is parsed before the time counts, as the guard does."""
    calls = [call(start * CALLS + number) for number in range(CALLS)]
    took = 0.0
    for tool, arguments in calls:
        if read:
            parse(arguments["command"])
        began = time.perf_counter()
        gate.judge(tool, arguments)
        took += time.perf_counter() - began
    return took / CALLS * 1e6
