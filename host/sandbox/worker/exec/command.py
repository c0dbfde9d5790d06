"""Commands as their reaper sees them: the launcher that starts them, and one that runs."""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Final

from .. import frames
from ..confine import namespaces
from ..files import paths
from ..frames import Channel, Closed, Frame, Place
from ..limits import tree
from ..names import Refused
from . import launcher
from .launcher import Environment

_AT_ONCE_MS: Final = 20


class Output:
    """A command's output, bounded while it is read: the first and the last half of ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def add(self, data: bytes) -> None:
        """Take more output."""
        self._total += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    def text(self) -> str:
        """Return the kept text, and how many bytes between beginning and end were left out."""
        tail = bytes(self._tail[-self._half :]) if self._half else b""
        dropped = self._total - len(self._head) - len(tail)
        if not dropped:
            return (bytes(self._head) + tail).decode("utf-8", "replace")
        head = bytes(self._head).decode("utf-8", "replace")
        return f"{head}\n[... {dropped} bytes left out ...]\n{tail.decode('utf-8', 'replace')}"


class Process:
    """A running command and the reaper's ends of its streams."""

    status: int | None = None
    fault: str | None = None
    killed = 0

    def __init__(self, output: int, stdin: int | None) -> None:
        self.output = output
        self.input = stdin

    def close_input(self) -> None:
        """Close the command's standard input."""
        if self.input is not None:
            os.close(self.input)
            self.input = None

    def close(self) -> None:
        """Close all descriptors."""
        self.close_input()
        os.close(self.output)


class Launcher:
    """An environment's launcher, forked ahead.

    In namespaces it ``serves_on``, and its channel tells how commands end. Elsewhere it becomes the command,
    and its end is the command's.
    """

    def __init__(self, environment: Environment) -> None:
        """Fork it. Raises ``OSError``."""
        self._environment = environment
        self.serves_on = environment.config.namespaces
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        reaper = os.getpid()
        self.pid = namespaces.fork_first() if self.serves_on else os.fork()
        if self.pid == 0:
            ours.close()
            launcher.launch(environment, Channel(theirs), reaper)
        theirs.close()
        self.channel = Channel(ours, takes_descriptors=True)
        self._pidfd = os.pidfd_open(self.pid)
        self._fault, listeners = self._meet()
        self.listener = listeners[0] if listeners else None

    def _meet(self) -> tuple[str | None, list[int]]:
        try:
            first = self.channel.receive()
        except Closed:
            return "the process that starts commands died", []
        self.channel.takes_descriptors = False  # what comes later comes from beside the commands
        return first.get("fault"), self.channel.descriptors(first.get("descriptors", 0))

    def fileno(self) -> int:
        """Return what to poll before ``hear``."""
        return self.channel.fileno() if self.serves_on else self._pidfd

    def hear(self, process: Process) -> bool:
        """Take what there is to hear: how the command ended, or why it did not start; False if it goes on.

        Raises ``Closed`` when a launcher that should stay is gone.
        """
        told: list[Frame] = []
        with contextlib.nullcontext() if self.serves_on else contextlib.suppress(Closed):
            told = self.channel.pull()
        for frame in told:
            process.status, process.fault = frame.get("status"), frame.get("fault")
            process.killed = frame.get("killed", 0)
        if self.serves_on or not self._has_ended():
            return bool(told)
        if process.fault is None:
            process.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return True

    def _has_ended(self, within_ms: int = 0) -> bool:
        waiting = select.poll()
        waiting.register(self._pidfd, select.POLLIN)
        return bool(waiting.poll(within_ms))

    def end_all(self) -> bool:
        """End everything in the environment; True once nothing is left."""
        return self._end() if self.serves_on else tree.end_all(scoped=self._environment.scoped)

    def _end(self) -> bool:
        """Kill it, and with it everything below; True once it is gone.

        It ends the others when the kernel gives it time, which a bomb takes: so they are killed beside it.
        """
        with contextlib.suppress(ProcessLookupError):  # by descriptor: its number may be another's by now
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        deadline = time.monotonic() + tree.SWEEP_LIMIT_MS / 1000
        while not self._has_ended(_AT_ONCE_MS):
            if time.monotonic() > deadline:
                return False
            tree.kill_walking()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        return True

    def close(self) -> None:
        """Let go of one that has ended."""
        self.channel.close()
        os.close(self._pidfd)
        if self.listener is not None:
            os.close(self.listener)

    def start(self, request: Frame, streams: Sequence[int]) -> Process:
        """Have ``request["command"]`` started, or ``request["program"]``, in its place.

        ``hear`` tells what became of it. ``streams``: stdin and stdout if they are not to be the reaper's;
        closed here.
        """
        with contextlib.ExitStack() as theirs:
            theirs.callback(frames.close_all, streams)
            process, given = _with_streams(request, streams, theirs)
            try:
                place = Place(request["workspace"], request["temporary"], tuple(request.get("words", ())))
                self._environment.admit(place)
                given |= theirs.enter_context(self._directory(place, request.get("cwd")))
                self._ask(request, given)
            except Refused as refusal:
                process.fault = str(refusal)
            except Closed:
                process.fault = self._fault or "the process that starts commands is gone; try again"
            return process

    def _ask(self, request: Frame, given: dict[str, int]) -> None:
        fields = {**request, "streams": list(given), "descriptors": len(given)}
        fields.pop("stdin", None)
        self.channel.send(fields, list(given.values()))

    @contextlib.contextmanager
    def _directory(self, place: Place, cwd: str | None) -> Iterator[dict[str, int]]:
        """Open where the command is to start, if that is not the workspace. Raises ``Refused``."""
        if not cwd:
            yield {}
            return
        with (
            paths.Roots(paths.root_paths(self._environment.config, place), place.home) as roots,
            roots.directory(cwd) as directory,
        ):
            yield {"cwd": directory}


def _with_streams(
    request: Frame, streams: Sequence[int], theirs: contextlib.ExitStack
) -> tuple[Process, dict[str, int]]:
    """Return a process with our ends of its pipes, and its ends by number (closed with ``theirs``)."""
    output, output_inside = _pipe()
    theirs.callback(os.close, output_inside)
    os.set_blocking(output, False)
    process = Process(output, None)
    given = {"1": output_inside, "2": output_inside}
    if request.get("stdin"):
        input_inside, process.input = _pipe()
        theirs.callback(os.close, input_inside)
        os.set_blocking(process.input, False)
        given["0"] = input_inside
    given |= {str(number): stream for number, stream in enumerate(streams)}
    return process, given


def _pipe() -> tuple[int, int]:
    return os.pipe2(os.O_CLOEXEC)
