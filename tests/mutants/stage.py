"""Pytest in a process that sees other files in place of some of the tree's, as do all that it starts.

It is forked from one that has imported what the program and its tests import from elsewhere, but nothing of
ours. In a mount namespace of its own the other files are at the paths of the tree (mount_namespaces(7)), so
that one tree serves many at once; with its process namespace all ends that was started in it
(pid_namespaces(7)). Both want root.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent.parent
OURS = ("host", "mcp_server", "shared", "tests", "benchmarks", "__main__")
NEW_MOUNTS, NEW_PROCESSES = 0x20000, 0x20000000
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
KNOWN = "import host.app, mcp_server.server, tests.running, tests.in_process, sys; print(*sys.modules)"
LIBC = ctypes.CDLL(None, use_errno=True)


def warm() -> None:
    """Import what tests will, but for what is to be imported anew. Pytest's plugins are its own to import."""
    command = [sys.executable, "-c", KNOWN]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in [*names, "pytest", "_pytest.assertion.rewrite", "unittest"]:
        if name.partition(".")[0] not in OURS:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def run(
    shown: dict[Path, Path], arguments: list[str], seconds: float, plugins: list[object] | None = None
) -> str:
    """Run pytest where files or folders of ``shown`` stand in for others. Return "", "killed" or "hung"."""
    temporary = tempfile.mkdtemp(prefix="m", dir="/tmp")
    Path(temporary).chmod(0o755)
    process = os.fork()
    if process == 0:
        _never_returns(lambda: _apart(shown, lambda: _pytest(arguments, temporary, plugins or [])))
    try:
        return _ended(process, seconds)
    finally:
        # Tests make folders that are deeper than Python goes.
        subprocess.run(["rm", "-rf", temporary], check=False)


def _ended(process: int, seconds: float) -> str:
    descriptor = os.pidfd_open(process)
    try:
        in_time, _, _ = select.select([descriptor], [], [], seconds)
        if not in_time:
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        _, status = os.waitpid(process, 0)
        return "hung" if not in_time else "" if os.waitstatus_to_exitcode(status) in (0, 5) else "killed"
    finally:
        os.close(descriptor)


def _never_returns(work: Callable[[], int]) -> NoReturn:
    code = 70
    try:
        code = work()
    except BaseException:  # noqa: BLE001 - nothing may go on in a forked process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _apart(shown: dict[Path, Path], work: Callable[[], int]) -> int:
    """Wait for the first process of the namespaces, whose end is that of all in them; end it when told to."""
    _call("prctl", 1, signal.SIGTERM)
    _call("unshare", NEW_MOUNTS | NEW_PROCESSES)
    _call("mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    for path, other in shown.items():
        _call("mount", bytes(other), bytes(ROOT / path), None, BIND, None)
    first = os.fork()
    if first == 0:
        _never_returns(lambda: _reap(work))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
    return _exit_code(os.waitpid(first, 0)[1])


def _reap(work: Callable[[], int]) -> int:
    _call("prctl", 1, signal.SIGKILL)
    _call("mount", b"proc", b"/proc", b"proc", 0, None)
    main = os.fork()
    if main == 0:
        os.setsid()
        _never_returns(work)
    while (ended := os.wait())[0] != main:
        pass
    return _exit_code(ended[1])


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _pytest(arguments: list[str], temporary: str, plugins: list[object]) -> int:
    import pytest

    # What was imported to get here is the tree's own, not what stands in for it.
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS[:-1]]:
        if not name.startswith("tests.mutants"):
            del sys.modules[name]
    os.chdir(ROOT)
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(f"{temporary}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for here, there in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(here, there)
    os.unlink(f"{temporary}.log")
    fixed = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "--assert=plain", "--tb=no"]
    return int(pytest.main([*fixed, *arguments], plugins=plugins))


def _call(name: str, *arguments: object) -> None:
    if getattr(LIBC, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
