"""What counts as a command's memory, against real processes: all of it, and nothing twice."""

from __future__ import annotations

import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from host.sandbox.client import Sandbox
from host.sandbox.policy import Limits, SandboxPolicy
from host.sandbox.worker import syscalls
from host.sandbox.worker.limits import hidden_memory, tree
from tests.only_root import only_root
from tests.sandbox.opened import toolset

LIMIT = 100 << 20

# the process goes on in another thread when its first one ends, and only then takes memory
FIRST_THREAD_ENDS = f"""
import ctypes, threading, time
def work():
    time.sleep(0.2)
    held = bytearray({3 * LIMIT})
    time.sleep(2)
    print("kept", len(held), flush=True)
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall({60 if platform.machine() == "x86_64" else 93}, 0)
"""

# CLONE_VM without CLONE_VFORK: as between vfork and exec, for as long as one wants to look
IN_THE_SAME_MEMORY = f"""
import ctypes, os, signal, time
held, stack = bytearray({LIMIT * 3 // 5}), ctypes.create_string_buffer(1 << 16)
libc = ctypes.CDLL(None)
top = ctypes.c_void_p(ctypes.addressof(stack) + len(stack) - 4096 & ~15)
def child(does, number):
    pid = libc.clone(does, top, 0x100 | signal.SIGCHLD, ctypes.c_void_p(number))
    assert pid > 0
    return pid
"""
A_CHILD_IN_THE_SAME_MEMORY = f"""{IN_THE_SAME_MEMORY}
child(libc.sleep, 1)
print("started", flush=True)
time.sleep(0.8)
print("counted once", flush=True)
"""

# the same for a moment only, again and again: what a program that starts many others looks like
CHILDREN_FOR_A_MOMENT = f"""{IN_THE_SAME_MEMORY}
for _ in range(40):
    os.waitpid(child(libc.usleep, 10_000), 0)
    time.sleep(0.005)
print("counted once", flush=True)
"""

# workers that share their parent's memory, and then write into it
WORKERS = f"""
import os, time
held = bytearray({LIMIT * 3 // 5})
for _ in range(30):
    if os.fork() == 0:
        time.sleep(1)
        %s
        time.sleep(2)
        os._exit(0)
for _ in range(30):
    os.wait()
print("shared", flush=True)
"""
WRITES = "for at in range(0, len(held), 4096): held[at] = 1"

# a process whose sandbox has no kcmp(2), as in a container with Docker's own filter
WITHOUT_KCMP = """
import sys, anyio
from pathlib import Path
from host.sandbox.client import Sandbox
from host.sandbox.policy import Limits, SandboxPolicy
from host.sandbox.worker import syscalls
from host.sandbox.worker.confine import bpf, seccomp
from tests.sandbox.opened import toolset
seccomp.install(bpf.compile_filter([bpf.Rule("kcmp", bpf.refuse())]))
assert not syscalls.share_memory(1, 1)
async def main():
    policy = SandboxPolicy(workspace=Path(sys.argv[1]), limits=Limits(memory=int(sys.argv[2])), max_level=2)
    async with Sandbox(policy) as sandbox:
        arguments = {"command": "exec python3 -", "stdin": sys.stdin.read()}
        print((await toolset(sandbox, "c").call("exec", arguments)).text)
anyio.run(main)
"""


async def outcome(ws: Path, level: int, script: str) -> str:
    policy = SandboxPolicy(workspace=ws, limits=Limits(memory=LIMIT), max_level=level)
    async with Sandbox(policy) as sandbox:
        arguments = {"command": "exec python3 -", "stdin": script}
        return (await toolset(sandbox, "c").call("exec", arguments)).text


@pytest.mark.parametrize("level", [3, 2])
async def test_memory_counts_when_the_first_thread_has_ended(ws: Path, level: int) -> None:
    text = await outcome(ws, level, FIRST_THREAD_ENDS)
    assert "memory limit" in text
    assert "kept" not in text


@pytest.mark.parametrize("level", [3, 2])
async def test_a_child_that_runs_in_its_parents_memory_takes_none(ws: Path, level: int) -> None:
    if not syscalls.share_memory(os.getpid(), os.getpid()):
        pytest.skip("needs kcmp(2)")
    text = await outcome(ws, level, A_CHILD_IN_THE_SAME_MEMORY)
    assert "counted once" in text, text
    assert "exit code 0" in text


@pytest.mark.parametrize(("does", "said"), [("pass", "shared"), (WRITES, "memory limit")])
async def test_shared_pages_count_once_until_somebody_writes_into_them(
    ws: Path, does: str, said: str
) -> None:
    text = await outcome(ws, 3, WORKERS % does)
    assert said in text, text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to install a filter")
@pytest.mark.parametrize(
    ("script", "said"), [(CHILDREN_FOR_A_MOMENT, "counted once"), (FIRST_THREAD_ENDS, "memory limit")]
)
def test_where_memory_cannot_be_compared_one_looks_for_longer(ws: Path, script: str, said: str) -> None:
    command = [sys.executable, "-c", WITHOUT_KCMP, str(ws), str(LIMIT)]
    for _ in range(3):  # on a machine at work a moment may last longer than one looks
        done = subprocess.run(command, input=script, text=True, capture_output=True, timeout=60, check=True)
        if said in done.stdout:
            return
    pytest.fail(done.stdout)


@contextmanager
def running(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that says a line when it is ready; its end is left to the test, or to the exit."""
    with subprocess.Popen([sys.executable, "-Ic", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def end_unreaped(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


RESERVES = (
    f"import mmap, time; m = mmap.mmap(-1, {4 * LIMIT}, prot=mmap.PROT_READ, flags=0x22); print(flush=1)"
)
FILLS = f"import time; x = bytearray({2 * LIMIT}); print(flush=1)"
OPENS = "import os, time; k = [os.pipe() for _ in range(300)]; print(flush=1)"
WAIT = "; time.sleep(60)"


@pytest.mark.parametrize("script", [RESERVES, OPENS])
def test_what_a_process_had_is_not_held_against_it_once_it_has_ended(script: str) -> None:
    with running(script + WAIT) as process:
        seen = hidden_memory.look(process.pid)
        assert seen is not None
        end_unreaped(process)
        assert hidden_memory.Watch().look([seen], LIMIT) == (0, 0)


def test_a_process_that_ended_while_pages_were_told_apart_has_none() -> None:
    with running(FILLS + WAIT) as process:
        seen = hidden_memory.look(process.pid)
        assert seen is not None
        part = tree.ask(seen)
        assert part is not None
        assert part.private > LIMIT
        end_unreaped(process)
        assert tree.ask(seen) is None


def test_who_has_ended_does_not_hide_those_who_are_counted_behind_it() -> None:
    with running(OPENS + WAIT) as one, running(FILLS + WAIT) as other:
        ended, goes_on = (hidden_memory.look(each.pid) for each in (one, other))
        assert ended is not None
        assert goes_on is not None
        end_unreaped(one)
        proportions = tree.Proportions()
        for _ in range(2):  # one look may have the time to ask one of them only
            parts = proportions.parts([ended, goes_on])
        assert 2 * LIMIT < parts.private < 3 * LIMIT


def test_children_that_come_and_go_are_not_taken_for_memory() -> None:
    """A parent with more than half of the limit starts programs: they share its memory for a moment."""
    storm = f"import os, subprocess; x = bytearray({LIMIT * 3 // 5}); top = os.getppid(); print(flush=1)\n"
    storm += "while os.getppid() == top: subprocess.run(['/bin/true'])"
    # Below a process of its own: this one may have others of other tests below it.
    with running(f"import subprocess, sys; subprocess.run([sys.executable, '-Ic', {storm!r}])") as process:
        most, ends = 0, time.monotonic() + 2
        while time.monotonic() < ends:
            used = tree.Meter().usage(process.pid, None, LIMIT, 512)
            most = max(most, used.memory)
        assert process.poll() is None
    if syscalls.share_memory(os.getpid(), os.getpid()):
        assert most <= LIMIT


def test_the_sockets_of_all_processes_count_each_once() -> None:
    opens = "import os, socket, time; held = [socket.socketpair() for _ in range(100)]\n"
    opens += "twice = [os.dup(one.fileno()) for pair in held for one in pair]; print(flush=1)"
    with running(opens + WAIT) as one, running(opens + WAIT) as other:
        seen = [found for each in (one, other) if (found := hidden_memory.look(each.pid)) is not None]
        each_once = 2 * 200 * hidden_memory.SOCKET_BYTES
        assert each_once <= hidden_memory.descriptors(seen, each_once) < each_once * 5 // 4


@only_root
def test_the_threads_of_a_uid_are_its_own_alone() -> None:
    uid = 41_234
    assert tree.tasks_of(uid) == 0
    starts = "import os, threading, time; threading.Thread(target=time.sleep, args=(60,)).start()"
    with running(f"{starts}; os.setuid({uid}); print(flush=1){WAIT}"):
        assert tree.tasks_of(uid) == 2


def test_a_short_list_of_mappings_counts_as_it_is_when_time_is_up() -> None:
    with running(f"import time; print(flush=1){WAIT}") as process:
        seen = hidden_memory.look(process.pid)
        assert seen is not None
        cut_off = hidden_memory.listing(seen, LIMIT, 0.0)
        whole = hidden_memory.listing(seen, LIMIT, math.inf)
        # The kernel gives a page of the list with each read.
        assert 0 < cut_off.mappings <= whole.mappings
        assert not cut_off.hidden
