"""Many turns over many conversations: what stays behind (``python -m benchmarks.soak``, ``make soak``).

Memory, descriptors and processes of the whole tree are looked at after every tenth of the turns, each time
when the host is at rest, with what a turn took, used and left on the disk. Promise: flat, that is within 5 %
from the third tenth to the last one (what a turn took depends on the machine too). With ``--kill-every``, the
host is killed in the middle of its work after so many turns; its store is checked before it starts again.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.turns import MIB, connect, host_cpu, pss_mib, turn
from tests.running import TOKEN, HostProcess, directive, new_host, running_model

CALLERS = 8
TOOLS = (
    {"name": "exec", "input": {"command": "echo soak >soak.txt"}},
    {"name": "read_file", "input": {"path": "soak.txt"}},
    {"name": "mcp__picoclaw__list_tasks", "input": {}},
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the tree and the disk hold after so many turns, and what turns took and used since the last one.

    ``memory`` in MiB PSS, ``disk`` in MiB, ``cpu`` and ``turn`` (median) in ms.
    """

    turns: int
    memory: float
    descriptors: int
    processes: int
    cpu: float
    turn: float
    disk: float


@dataclass(slots=True)
class Soak:
    """A host, the conversations on it with their principals' tokens, and what their turns took."""

    host: HostProcess
    kill_every: int
    conversations: list[tuple[str, str]] = field(default_factory=list)
    made: int = 0
    kills: int = 0
    cpu_s: float = 0.0
    took_ms: list[float] = field(default_factory=list)

    def begin(self, conversations: int, principals: int) -> None:
        """Make the principals and a conversation after the other, for each in turn."""
        tokens = [self._principal(f"user {number}") for number in range(principals)] or [TOKEN]
        body = directive(steps=[{"tools": [TOOLS[0]]}, {"text": "done"}])
        for number in range(conversations):
            token = tokens[number % len(tokens)]
            self.conversations.append((turn(self.host, None, body, token=token)["conversation_id"], token))

    def _principal(self, name: str) -> str:
        with self.host.client() as client:
            whose = client.post("/principals", json={"name": name}).raise_for_status().json()["id"]
            made = client.post(f"/principals/{whose}/tokens", json={"name": "soak"}).raise_for_status()
            return str(made.json()["token"])

    def turns(self, count: int) -> None:
        """Make so many turns, with the kills that are due."""
        until = self.made + count
        while self.made < until:
            due = until - self.made
            if self.kill_every:
                due = min(due, self.kill_every - self.made % self.kill_every)
            self._batch(due, killed=bool(self.kill_every) and (self.made + due) % self.kill_every == 0)

    def _batch(self, count: int, *, killed: bool) -> None:
        before = host_cpu(self.host)
        done = threading.Semaphore(0)
        callers = [threading.Thread(target=self._talk, args=(n, count, done, killed)) for n in range(CALLERS)]
        for caller in callers:
            caller.start()
        if killed:
            for _ in range(max(count - CALLERS, 1)):
                done.acquire()
            self.cpu_s += host_cpu(self.host) - before
            self.host.kill()
        for caller in callers:
            caller.join()
        self.made += count
        if killed:
            self.kills += 1
            check_store(self.host)
            self.host.start()
        else:
            self.cpu_s += host_cpu(self.host) - before

    def _talk(self, caller: int, count: int, done: threading.Semaphore, killed: bool) -> None:
        # A caller keeps to its own conversations, so that none is busy.
        own = self.conversations[caller::CALLERS]
        connection = connect(self.host)
        for number in range(caller, count, CALLERS):
            conversation, token = own[(self.made + number) // CALLERS % len(own)]
            started = time.perf_counter()
            try:
                turn(self.host, conversation, _message(number), connection, token)
            except (OSError, http.client.HTTPException):
                if not killed:
                    raise
                done.release()
                continue
            self.took_ms.append((time.perf_counter() - started) * 1000)
            done.release()
        connection.close()


def _message(number: int) -> str:
    calls = [TOOLS[number % 7]] if number % 7 < len(TOOLS) else []
    steps = [{"tools": calls}, {"text": "done"}] if calls else [{"text": f"answer {number}"}]
    return directive(f"turn {number}", steps=steps)


def check_store(host: HostProcess) -> None:
    """Read all that is stored; raises RuntimeError with what is wrong."""
    command = [sys.executable, "-m", "host.cli", "store", "check"]
    checked = subprocess.run(command, env=host.environment, capture_output=True, text=True, check=False)
    if checked.returncode:
        raise RuntimeError(f"the store is not whole after a kill: {checked.stdout}{checked.stderr}")


def soak(asked: argparse.Namespace) -> Iterator[Sample]:
    """Run so many turns over so many conversations and yield a sample after each tenth."""
    with tempfile.TemporaryDirectory() as root, running_model() as model:
        Path(root).chmod(0o755)  # the principals' uids pass through
        running = Soak(
            new_host(Path(root) / "host", model.url, {"LOG_LEVEL": "warning"}).start(), asked.kill_every
        )
        try:
            running.begin(asked.conversations, asked.principals)
            yield from _tenths(running, asked.turns // 10, asked.rest)
        finally:
            running.host.stop()


def _tenths(running: Soak, turns: int, rest_s: float) -> Iterator[Sample]:
    host = running.host
    for tenth in range(1, 11):
        running.cpu_s, running.took_ms = 0.0, []
        running.turns(turns)
        memory = _at_rest(host, rest_s)
        yield Sample(
            tenth * turns,
            memory,
            _descriptors(host),
            len(host.tree()),
            running.cpu_s * 1000 / turns,
            statistics.median(running.took_ms),
            _disk(host) / MIB,
        )


def drift(samples: list[Sample]) -> dict[str, float]:
    """Return how much each figure grew from the third tenth to the last, in percent."""
    first, last = samples[2], samples[-1]
    names = ("memory", "descriptors", "processes", "cpu", "turn")
    grew = {f"{name} grew (%)": 100 * (getattr(last, name) / getattr(first, name) - 1) for name in names}
    return grew | {"disk a turn (KiB)": 1024 * (last.disk - first.disk) / (last.turns - first.turns)}


def _at_rest(host: HostProcess, rest_s: float) -> float:
    time.sleep(rest_s)
    return statistics.median(pss_mib(host) for _ in range(3))


def _descriptors(host: HostProcess) -> int:
    count = 0
    for process in host.tree():
        with suppress(psutil.Error):
            count += process.num_fds()
    return count


def _disk(host: HostProcess) -> int:
    """Return what all of the host's files take, in bytes."""
    total = 0
    for path in host.root.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total


def main() -> None:
    """Print the samples and the drift, and keep them for the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--conversations", type=int, default=500)
    parser.add_argument(
        "--principals", type=int, default=0, help="whose the conversations are; 0: the operator's"
    )
    parser.add_argument("--kill-every", type=int, default=0, help="turns between two kills; 0: none")
    parser.add_argument("--rest", type=float, default=2.0, help="seconds before the host is looked at")
    arguments = parser.parse_args()
    print(
        f"{'turns':>8} {'MiB PSS':>9} {'descriptors':>12} {'processes':>10} "
        f"{'CPU ms':>8} {'turn ms':>8} {'disk MiB':>9}"
    )
    samples = []
    for sample in soak(arguments):
        samples.append(sample)
        print(
            f"{sample.turns:>8} {sample.memory:>9.1f} {sample.descriptors:>12} {sample.processes:>10} "
            f"{sample.cpu:>8.2f} {sample.turn:>8.2f} {sample.disk:>9.1f}",
            flush=True,
        )
    for name, value in drift(samples).items():
        print(f"{name:<24} {value:>7.1f}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    figures = [[s.turns, s.memory, s.descriptors, s.processes, s.cpu] for s in samples]
    (results / "soak.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
