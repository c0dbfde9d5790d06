"""Long conversations: what the prompt cache has of them, what a late turn costs beside an early one.

The fake model applies the cache's real rule (``tests/fakes/model_cache.py``). Own time is what a caller
waits, less what the model alone takes for the very same request.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

from benchmarks.turns import timed, turn
from tests.running import HostProcess, ModelProcess, directive, new_host, running_model

WORDS: Final = "We talked about the garden, the fence and the apple trees, and what they need in spring. "
TURNS: Final = 30
LATE: Final = 200
ROUNDS: Final = 40
WINDOW: Final = 20_000


async def main() -> dict[str, float]:
    """Return the figures."""
    return await asyncio.to_thread(measure)


def measure() -> dict[str, float]:
    """Run everything once."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root, running_model() as model:
        host = new_host(Path(root) / "host", model.url, {"LOG_LEVEL": "warning"}).start()
        try:
            figures |= cached(host)
            figures |= late(host, model)
        finally:
            host.stop()
        figures |= bounded(Path(root) / "small", model)
    return figures


def cached(host: HostProcess) -> dict[str, float]:
    """Measure the cache's part of the input over a conversation of 30 turns."""
    path = Path(host.environment["MEMORY_DIR"], "garden.txt")
    path.write_text(WORDS * 3)
    call = {"tools": [{"name": "read_file", "input": {"path": "garden.txt"}}]}
    talk = [f"turn {number}: {WORDS * 2}" for number in range(TURNS)]
    tools = [directive(f"turn {number}", steps=[call, {"text": WORDS}]) for number in range(TURNS)]
    label = f"cache hits over {TURNS} turns"
    return {
        f"{label} (% of input)": 100 * hit_ratio(converse(host, talk)),
        f"{label} with a tool each (% of input)": 100 * hit_ratio(converse(host, tools)),
    }


def late(host: HostProcess, model: ModelProcess) -> dict[str, float]:
    """Compare turn 200 of a conversation with turn 2, in turns that alternate."""
    message = f"What about the fence? {WORDS}"
    old = converse(host, [message] * (LATE - 1))[0]["conversation_id"]
    young = [turn(host, None, message)["conversation_id"] for _ in range(ROUNDS)]
    second: list[float] = []
    two_hundredth: list[float] = []
    for conversation in young:
        second.append(timed(lambda: turn(host, conversation, message)))  # noqa: B023 - called at once
        two_hundredth.append(timed(lambda: turn(host, old, message)))
    *_, body_of_second, body_of_late = (request["body"] for request in model.requests())
    floor_early = replayed(model.url, body_of_second)
    floor_late = replayed(model.url, body_of_late)
    early = statistics.median(second) - floor_early
    later = statistics.median(two_hundredth) - floor_late
    return {
        "turn 2 (ms p50)": statistics.median(second),
        f"turn {LATE} (ms p50)": statistics.median(two_hundredth),
        "own time, turn 2 (ms p50)": early,
        f"own time, turn {LATE} (ms p50)": later,
        f"own time, turn {LATE} to turn 2": later / early,
    }


def bounded(root: Path, model: ModelProcess) -> dict[str, float]:
    """Measure what turns send of a conversation that is much longer than the window."""
    host = new_host(root, model.url, {"LOG_LEVEL": "warning", "CLAUDE_MODEL": f"fake-window-{WINDOW}"})
    (root / "home").mkdir()
    config = {
        "version": 3,
        "agents": {"defaults": {"max_tokens": 1000}},
        "history": {"window": WINDOW, "archive": False},
    }
    (root / "home" / "config.json").write_text(json.dumps(config))
    host.start()
    try:
        answers = converse(host, [f"turn {number}: {WORDS * 6}" for number in range(LATE)])
    finally:
        host.stop()
    sent = [sum(answer["usage"].values()) - answer["usage"]["output_tokens"] for answer in answers]
    label = f"tokens sent a turn, window of {WINDOW:,}"
    return {
        f"{label}, turns 1 to 100 (mean)": statistics.mean(sent[:100]),
        f"{label}, turns 101 to 200 (mean)": statistics.mean(sent[100:]),
        f"{label} (most)": max(sent),
        "cache hits with compactions (% of input)": 100 * hit_ratio(answers),
    }


def converse(host: HostProcess, messages: list[str]) -> list[dict[str, Any]]:
    """Make one conversation of the messages and return the answers."""
    answers: list[dict[str, Any]] = []
    for message in messages:
        answers.append(turn(host, answers[0]["conversation_id"] if answers else None, message))
    return answers


def hit_ratio(answers: list[dict[str, Any]]) -> float:
    """Return the cache's part of all input."""
    used = Counter[str]()
    for answer in answers:
        used.update(answer["usage"])
    read = used["cache_read_input_tokens"]
    return read / (read + used["cache_creation_input_tokens"] + used["input_tokens"])


def replayed(url: str, body: dict[str, Any]) -> float:
    """Return what the model alone takes for the same request, in milliseconds (p50)."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    content = json.dumps(body)

    def ask() -> None:
        connection.request("POST", "/v1/messages", content, {"Content-Type": "application/json"})
        connection.getresponse().read()

    return statistics.median(timed(ask) for _ in range(ROUNDS))
