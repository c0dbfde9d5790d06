"""``picoclaw supervise``: supervisord as a container's main process.

What supervisord leaves open for that place, and this adds:

- It ends with the exit code of the program that ended the container, not always with 0.
- A program that ends with one of its ``exitcodes``, or was tried in vain ``startretries`` times, ends the
  container. Restarting it could only fail again, where nobody sees it.
- It starts its programs at once and hears signals at once; left alone it looks once a second.
- What programs write goes to its own standard output by lines; what isn't JSON is made JSON. (supervisord
  would open /dev/stdout, which another user's pipe refuses.)
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

from supervisor import events, loggers
from supervisor.medusa import asyncore_25 as asyncore
from supervisor.options import ServerOptions
from supervisor.states import SupervisorStates
from supervisor.supervisord import Supervisor

from shared.logging import JsonFormatter
from shared.redact import Redactor

CONFIG: Final = "/etc/picoclaw/supervisord.conf"
DID_NOT_START: Final = 1
KILLED: Final = 128
"""What a shell adds to the number of the signal that ended a program."""

LONGEST_LINE: Final = 1 << 20
"""Bytes of a line that are waited for."""

logger = logging.getLogger("picoclaw.supervisor")


def supervise(config: Path | None = None, *, all_json: bool = True) -> int:
    """Run the programs of a supervisord.conf until one ends the container; return the exit code.

    ``all_json``: lines of programs that aren't JSON are passed on as JSON.
    """
    _log_to_stdout()
    while True:
        options = _Options()
        options.realize(["-c", str(config or CONFIG)])
        options.first, options.test = True, False
        supervisor = _Supervisor(options, _Output(all_json=all_json))
        try:
            supervisor.main()
        except asyncore.ExitNow:
            logger.info("All programs have ended", extra={"exit_code": supervisor.exit_code})
        if options.mood < SupervisorStates.RESTARTING:
            return supervisor.exit_code


class _Options(ServerOptions):
    """supervisord's settings and system calls; remembers how each process ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: dict[int, int] = {}

    def make_logger(self) -> None:
        self.logger = loggers.getLogger(self.loglevel)
        self.logger.addHandler(_Forward())
        for said in (*self.parse_criticals, *self.parse_warnings):
            self.logger.warn(said)

    def write_pidfile(self) -> None:
        """Write none: the main process of a container is known."""

    def waitpid(self) -> tuple[int | None, int | None]:
        pid, status = super().waitpid()
        if pid:
            code = os.waitstatus_to_exitcode(status)
            self.ended[pid] = code if code >= 0 else KILLED - code
        return pid, status


class _Supervisor(Supervisor):
    """supervisord that ends with its programs."""

    def __init__(self, options: _Options, output: _Output) -> None:
        super().__init__(options)
        self.exit_code = 0
        self._output = output
        self._codes: dict[str, int] = {}

    def runforever(self) -> None:
        events.subscribe(events.ProcessLogEvent, self._on_output)
        events.subscribe(events.ProcessStateEvent, self._on_state)
        with _Wakeup():
            for group in self.process_groups.values():
                group.transition()
            super().runforever()

    def _on_output(self, event: Any) -> None:
        self._output.write(event.process.config.name, event.data)

    def _on_state(self, event: Any) -> None:
        process = event.process
        name = process.config.name
        code = self.options.ended.pop(process.pid, None)
        if code is not None:
            self._codes[name] = code
            self._output.end(name)
        match event:
            case events.ProcessStateFatalEvent():
                self._end(name, self._codes.get(name) or DID_NOT_START, "did not stay up")
            case events.ProcessStateBackoffEvent() | events.ProcessStateExitedEvent():
                if code in process.config.exitcodes:
                    self._end(name, code, "ended for good")
            case events.ProcessStateStoppedEvent() if code != KILLED + process.config.stopsignal:
                self.exit_code = self.exit_code or code or 0

    def _end(self, name: str, code: int, why: str) -> None:
        if self.options.mood < SupervisorStates.RUNNING:
            return
        level = logging.ERROR if code else logging.INFO
        logger.log(level, "%s %s: stopping", name, why, extra={"program": name, "exit_code": code})
        self.exit_code = code
        self.options.mood = SupervisorStates.SHUTDOWN


class _Output:
    """What the programs write, put together to lines."""

    def __init__(self, *, all_json: bool) -> None:
        self._all_json = all_json
        self._begun: dict[str, bytes] = {}

    def write(self, program: str, data: bytes) -> None:
        """Pass on every line that is complete, or too long to wait for."""
        *lines, rest = (self._begun.pop(program, b"") + data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        self._begun[program] = rest
        for line in lines:
            self._pass_on(program, line)

    def end(self, program: str) -> None:
        """Pass on what has no line end."""
        self._pass_on(program, self._begun.pop(program, b""))

    def _pass_on(self, program: str, line: bytes) -> None:
        if self._all_json and line.strip() and not line.startswith(b"{"):
            logger.warning("%s", line.decode("utf-8", "backslashreplace"), extra={"program": program})
        elif line.strip():
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()


class _Wakeup:
    """A descriptor in supervisord's loop that signals make readable (signal(7), the self-pipe)."""

    def __enter__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        asyncore.socket_map[self._reader.fileno()] = self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        del asyncore.socket_map[self._reader.fileno()]
        self._reader.close()
        self._writer.close()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        self._reader.recv(1024)

    def handle_error(self) -> None:
        logger.exception("A signal could not be heard")


class _Forward(loggers.Handler):
    """Hands supervisord's records to the one logger set-up's format."""

    def emit(self, record: Any) -> None:
        logger.log(record.level, "%s", record.asdict()["message"])

    def close(self) -> None:
        """Nothing is open."""


def _log_to_stdout() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(Redactor(())))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
