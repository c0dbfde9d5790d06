"""Peers: open agent servers beside PicoClaw, each in its own process, against one fake model, in one run.

``python -m benchmarks peers``; ``PEERS=PicoClaw,AgentOS`` takes some of them or your own (``module:Class``),
``PEER_TYPESCRIPT=DIR`` adds breakcafe/picoclaw as built there. Turns and loads are measured in turn, a few of
each at a time. The first start of each makes its bytecode and is not counted. For messages lost, a host is
killed (SIGKILL, the whole tree) while eight callers talk to it; lost is what was answered and is in no
conversation after the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from benchmarks.agent_hosts import ANSWER_S, PEERS, UNTOLD, AgentHost, Refused, TypeScriptPeer, adapter
from benchmarks.principals import processor_s
from benchmarks.turns import REPLY, SCALE, in_turn, pss_mib, timed
from tests.running import directive, running_model

ROUNDS: Final = max(int(10 * SCALE), 1)
EACH: Final = 10 if SCALE else 1
LOAD_EACH: Final = max(int(10 * SCALE), 1)
CALLERS: Final = 8
KILLED_AFTER: Final = max(int(100 * SCALE), 4)


async def main() -> dict[str, float]:
    """Return the figures by host, and print them as a table."""
    figures = await asyncio.to_thread(measure)
    columns = list(next(iter(figures.values())))
    print(f"\n{'':<12}" + "".join(f"{column:>26}" for column in columns))
    for name, row in figures.items():
        print(f"{name:<12}" + "".join(f"{row[column]:>26,.1f}" for column in columns))
    return {f"{name}: {column}": value for name, row in figures.items() for column, value in row.items()}


def measure() -> dict[str, dict[str, float]]:
    """Set the hosts up, run them beside each other, and kill each at the end."""
    with tempfile.TemporaryDirectory() as root, running_model("--any-client") as model:
        Path(root).chmod(0o755)
        with contextlib.ExitStack() as running:
            hosts = []
            for kind in chosen():
                hosts.append(kind(Path(root) / kind.name, model.url))
                running.callback(hosts[-1].kill)
            figures = {host.name: started(host) for host in hosts}
            for name, more in side_by_side(hosts).items():
                figures[name] |= more
            for host in hosts:
                figures[host.name] |= killed(host)
    return figures


def chosen() -> list[type[AgentHost]]:
    """Return what was asked for."""
    names = os.environ.get("PEERS", ",".join(kind.name for kind in PEERS)).split(",")
    if "PEER_TYPESCRIPT" in os.environ:
        names.append(TypeScriptPeer.name)
    return [adapter(name) for name in names]


def started(host: AgentHost) -> dict[str, float]:
    """Start a host twice, and measure the second start and what it takes when nothing is done."""
    host.start()
    host.chat(REPLY)
    host.kill()
    begun = time.perf_counter()
    host.start()
    host.chat(REPLY)
    return {
        "start and first turn (s)": time.perf_counter() - begun,
        "memory (MiB PSS)": pss_mib(host.process),
    }


def side_by_side(hosts: list[AgentHost]) -> dict[str, dict[str, float]]:
    """Measure single turns, first chunks and loads of all in turn."""
    before = {host.name: processor_s(host.process) for host in hosts}
    turns = in_turn(
        {h.name: lambda h=h: turn_ms(h) for h in hosts},  # type: ignore[misc]
        ROUNDS,
        EACH,
    )
    took_s = {host.name: processor_s(host.process) - before[host.name] for host in hosts}
    chunks = in_turn(
        {h.name: lambda h=h: h.first_chunk_s(REPLY, b"Hello") * 1000 for h in hosts},  # type: ignore[misc]
        ROUNDS,
        EACH,
    )
    rates = in_turn({h.name: lambda h=h: load(h) for h in hosts}, max(ROUNDS // 3, 1), 1)  # type: ignore[misc]
    return {
        host.name: {
            "a turn (ms p50)": statistics.median(turns[host.name]),
            "processor time (ms)": took_s[host.name] / (ROUNDS * EACH) * 1000,
            "first chunk (ms p50)": statistics.median(chunks[host.name]),
            "8 at once (turns/s)": statistics.median(rates[host.name]),
            "memory after (MiB PSS)": pss_mib(host.process),
        }
        for host in hosts
    }


def turn_ms(host: AgentHost) -> float:
    """Return what a turn in a new conversation takes."""
    connection = host.connect()
    try:
        return timed(lambda: host.chat(REPLY, connection=connection))
    finally:
        connection.close()


def load(host: AgentHost) -> float:
    """Return answered turns a second with eight callers, each in a conversation of its own."""
    answered: list[str] = []

    def talk() -> None:
        connection, conversation = host.connect(), None
        with contextlib.suppress(*UNTOLD):
            for _ in range(LOAD_EACH):
                conversation = host.chat(REPLY, conversation, connection=connection)
                answered.append(conversation)
        connection.close()

    callers = [threading.Thread(target=talk) for _ in range(CALLERS)]

    def all_talk() -> None:
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    took_ms = timed(all_talk)
    return len(answered) / took_ms * 1000


def killed(host: AgentHost) -> dict[str, float]:
    """Kill a host under load and count what was answered and is gone."""
    told: list[tuple[str, str]] = []
    enough = threading.Event()

    def talk(caller: int) -> None:
        conversation = None
        with contextlib.suppress(*UNTOLD):
            for number in range(KILLED_AFTER):
                text = f"message-{caller}-{number}-"
                conversation = host.chat(directive(text, text="fine"), conversation)
                told.append((conversation, text))
                if len(told) >= KILLED_AFTER:
                    enough.set()

    callers = [threading.Thread(target=talk, args=(caller,)) for caller in range(CALLERS)]
    for caller in callers:
        caller.start()
    enough.wait(2 * ANSWER_S)
    host.kill()
    for caller in callers:
        caller.join()
    host.start()
    lost = 0
    for conversation, text in told:
        try:
            lost += text not in host.messages(conversation)
        except Refused:
            lost += 1
    return {"answered before the kill": len(told), "of these lost": lost}
