"""Principals: what a turn costs when each conversation is another principal's, to when all are one's.

Two hosts against the same fake model, each with as many conversations; in turns, a hundred turns at a time,
so that both meet the machine in the same state. A second round goes on with all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.turns import REPLY, pss_mib
from tests.running import HostProcess, ModelProcess, running_host, running_model

CONVERSATIONS: Final = 1000
AT_A_TIME: Final = 100
ROUNDS: Final = 2


class Users:
    """A host and the conversations on it; ``tokens``: whose each is."""

    def __init__(self, host: HostProcess, principals: int) -> None:
        self.host = host
        self._client = host.client()
        made = [self._principal(f"user {number}") for number in range(principals)]
        self._tokens = made * (CONVERSATIONS // principals)
        self._conversations: list[str | None] = [None] * CONVERSATIONS
        self.turn(0)
        self._processor_s = processor_s(self.host)
        self.took_ms: list[float] = []

    def _principal(self, name: str) -> str:
        whose = self._asked("/principals", {"name": name})["id"]
        return str(self._asked(f"/principals/{whose}/tokens", {"name": "laptop"})["token"])

    def _asked(self, path: str, body: dict[str, Any], token: str | None = None) -> dict[str, Any]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answer: dict[str, Any] = self._client.post(path, json=body, headers=headers).raise_for_status().json()
        return answer

    def turn(self, number: int) -> None:
        """Make one turn in one of the conversations."""
        known = self._conversations[number]
        body = {"message": REPLY} | ({} if known is None else {"conversation_id": known})
        answer = self._asked("/chat", body, self._tokens[number])
        self._conversations[number] = answer["conversation_id"]

    def turns(self, first: int) -> None:
        """Make a turn in each of some conversations, and note what they took."""
        for number in range(first, first + AT_A_TIME):
            started = time.perf_counter()
            self.turn(number)
            self.took_ms.append((time.perf_counter() - started) * 1000)

    def figures(self) -> dict[str, float]:
        """Return what it came to."""
        used = processor_s(self.host) - self._processor_s
        return {
            "a turn (ms p50)": statistics.median(self.took_ms),
            "a turn: processor time of all processes (ms)": used * 1000 / len(self.took_ms),
            "memory of the tree (MiB PSS)": pss_mib(self.host),
        }


def processor_s(host: HostProcess) -> float:
    """Return the CPU seconds of the whole tree and of what has ended in it."""
    return sum(sum(process.cpu_times()[:4]) for process in host.tree())


async def main() -> dict[str, float]:
    """Return the figures, and their ratios."""
    return await asyncio.to_thread(measure)


def measure() -> dict[str, float]:
    """Run both hosts."""
    with ground() as (running, root, model):
        all_users = []
        for principals in (1, CONVERSATIONS):
            host = running_host(root / str(principals), model.url, {"LOG_LEVEL": "warning"})
            all_users.append(Users(running.enter_context(host), principals))
        return compared("1 principal", f"{CONVERSATIONS} principals", all_users, CONVERSATIONS)


@contextlib.contextmanager
def ground() -> Iterator[tuple[contextlib.ExitStack, Path, ModelProcess]]:
    """Give what hosts stand on: a stack that ends them, a directory, a fake model."""
    with contextlib.ExitStack() as running:
        root = Path(running.enter_context(tempfile.TemporaryDirectory()))
        root.chmod(0o755)  # the principals' uids pass through
        yield running, root, running.enter_context(running_model("--any-client"))


def compared(one: str, many: str, all_users: Sequence[Users], conversations: int) -> dict[str, float]:
    """Make turns in so many conversations of both in turn; return the figures of each, and their ratios."""
    for first in [*range(0, conversations, AT_A_TIME)] * ROUNDS:
        for users in all_users:
            users.turns(first)
    of_one, of_many = (users.figures() for users in all_users)
    figures: dict[str, float] = {}
    for name, figure in of_one.items():
        figures |= {f"{one}: {name}": figure, f"{many}: {name}": of_many[name]}
        figures[f"ratio: {name}"] = of_many[name] / figure
    return figures
