"""Many turns over many conversations: what stays behind. ``python -m benchmarks.soak [--turns N]``.

Memory, descriptors and processes of the whole tree are looked at after every tenth of the turns, each time
when the host is at rest. Promise: flat, that is within 5 % from the third tenth to the last one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.turns import connect, host_cpu, pss_mib, turn
from tests.running import HostProcess, directive, new_host, running_model

CALLERS = 8
SETTLED_S = 2.0
TOOLS = (
    {"name": "exec", "input": {"command": "echo soak"}},
    {"name": "read_file", "input": {"path": "soak.txt"}},
    {"name": "mcp__picoclaw__list_tasks", "input": {}},
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the tree holds after so many turns; memory in MiB PSS, CPU in ms a turn since the last one."""

    turns: int
    memory: float
    descriptors: int
    processes: int
    cpu: float


def soak(turns: int, conversations: int) -> list[Sample]:
    """Run so many turns over so many conversations and return a sample after each tenth."""
    with tempfile.TemporaryDirectory() as root, running_model() as model:
        host = new_host(Path(root) / "host", model.url, {"LOG_LEVEL": "warning"}).start()
        Path(host.environment["MEMORY_DIR"], "soak.txt").write_text("hello\n")
        try:
            ids = [turn(host, None)["conversation_id"] for _ in range(conversations)]
            return list(_tenths(host, ids, turns))
        finally:
            host.stop()


def drift(samples: list[Sample]) -> dict[str, float]:
    """Return how much each figure grew from the third tenth to the last, in percent."""
    first, last = samples[2], samples[-1]
    return {
        "memory grew (%)": 100 * (last.memory / first.memory - 1),
        "descriptors grew (%)": 100 * (last.descriptors / first.descriptors - 1),
        "processes grew (%)": 100 * (last.processes / first.processes - 1),
        "CPU a turn grew (%)": 100 * (last.cpu / first.cpu - 1),
    }


def _tenths(host: HostProcess, ids: list[str], turns: int) -> Iterator[Sample]:
    for tenth in range(1, 11):
        before = host_cpu(host)
        _turns(host, ids, turns // 10, offset=tenth * turns // 10)
        cpu = (host_cpu(host) - before) * 1000 / (turns // 10)
        yield Sample(tenth * turns // 10, _at_rest(host), _descriptors(host), len(host.tree()), cpu)


def _turns(host: HostProcess, ids: list[str], count: int, *, offset: int) -> None:
    def talk(caller: int) -> None:
        connection = connect(host)
        for number in range(caller, count, CALLERS):
            # A caller keeps to its own conversations, so that none is busy.
            own = ids[caller::CALLERS]
            conversation = own[(offset + number) // CALLERS % len(own)]
            calls = [TOOLS[number % 7]] if number % 7 < len(TOOLS) else []
            steps = [{"tools": calls}, {"text": "done"}] if calls else [{"text": f"answer {number}"}]
            turn(host, conversation, directive(f"turn {number}", steps=steps), connection)
        connection.close()

    callers = [threading.Thread(target=talk, args=(caller,)) for caller in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


def _at_rest(host: HostProcess) -> float:
    time.sleep(SETTLED_S)
    return statistics.median(pss_mib(host) for _ in range(3))


def _descriptors(host: HostProcess) -> int:
    count = 0
    for process in host.tree():
        with suppress(psutil.Error):
            count += process.num_fds()
    return count


def main() -> None:
    """Print the samples and the drift, and keep them for the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--conversations", type=int, default=500)
    arguments = parser.parse_args()
    samples = soak(arguments.turns, arguments.conversations)
    print(f"{'turns':>8} {'MiB PSS':>9} {'descriptors':>12} {'processes':>10} {'CPU ms/turn':>12}")
    for sample in samples:
        print(
            f"{sample.turns:>8} {sample.memory:>9.1f} {sample.descriptors:>12} {sample.processes:>10} "
            f"{sample.cpu:>12.2f}"
        )
    for name, value in drift(samples).items():
        print(f"{name:<24} {value:>7.1f}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    figures = [[s.turns, s.memory, s.descriptors, s.processes, s.cpu] for s in samples]
    (results / "soak.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
