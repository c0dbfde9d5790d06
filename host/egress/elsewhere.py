"""Receivers in a process of their own (``python -m host.egress.elsewhere``): no run waits behind a request.

Over a socket the host says a line of JSON (number, address, headers, bytes of the body) and the body for each
request, and hears a line with the number and the answer. The process ends with the socket.
"""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import anyio
from anyio.abc import Process

from host.egress.receivers import WITHIN_S, Answer, Receivers
from shared.jsons import dump_bytes, loads
from shared.processes import leave_the_end_to_the_host, not_dumpable, terminate

logger = logging.getLogger("picoclaw.webhooks")

LONGEST_LINE: Final = 1 << 20
TOGETHER_S: Final = 0.02
"""So long answers wait for others: to be woken takes the host longer than to hear one of them."""
STUCK_S: Final = 25.0
"""Silent for so long it counts as stuck: more than a start takes, less than a delivery's lease."""
ENDED: Final = "the process that tells webhooks has ended"


class ReceiversElsewhere:
    """As ``Receivers``; the process begins with the first request, and anew where it has ended."""

    def __init__(self, allowed_hosts: frozenset[str], version: str) -> None:
        self._arguments = (version, *allowed_hosts)
        self._starting = anyio.Lock()
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter
        self._hearing: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._last = 0

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a body; raises OSError where nobody knows what came of it."""
        async with self._starting:
            if self._hearing is None or self._hearing.done():
                await self.aclose()
                await self._start()
        self._last = number = self._last + 1
        asked: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        self._writer.write(dump_bytes([number, url, headers, len(body)]) + b"\n" + body)
        try:
            with anyio.fail_after(STUCK_S):
                return await asked
        except TimeoutError:
            logger.error("The process that tells webhooks doesn't answer; it is ended")
            if self._process is not None:
                with suppress(ProcessLookupError):
                    self._process.kill()
            raise
        finally:
            del self._asked[number]

    async def aclose(self) -> None:
        """Have the process end, and wait for that."""
        if self._process is not None:
            process, self._process = self._process, None
            self._writer.close()
            await terminate(process, WITHIN_S)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await anyio.open_process(
                [sys.executable, "-I", "-m", __name__, str(theirs.fileno()), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None,
                env={"PYDANTIC_DISABLE_PLUGINS": "__all__"},
                cwd=os.sep,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # the terminal's Ctrl-C is for the host
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=LONGEST_LINE)
        self._hearing = asyncio.create_task(self._hear(reader))

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while line := await reader.readline():
                number, *answer = loads(line)
                asked = self._asked.get(number)
                if asked is not None and not asked.done():
                    asked.set_result(Answer(*answer))
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ConnectionError(ENDED))


async def serve(control: socket.socket, receivers: Receivers) -> None:
    """Make the host's requests until it closes the socket; what is under way then ends with the process."""
    reader, writer = await asyncio.open_connection(sock=control, limit=LONGEST_LINE)
    answers: list[bytes] = []

    def say() -> None:
        writer.write(b"".join(answers))
        answers.clear()

    async def answer(number: int, url: str, headers: dict[str, str], body: bytes) -> None:
        said: Any = (None, "the host failed to send it")
        try:
            said = await receivers.post(url, body, headers)
        except Exception:
            logger.exception("A webhook could not be told")
        if not answers:
            asyncio.get_running_loop().call_later(TOGETHER_S, say)
        answers.append(dump_bytes([number, *said]) + b"\n")

    async with anyio.create_task_group() as requests:
        while head := await reader.readline():
            number, url, headers, size = loads(head)
            requests.start_soon(answer, number, url, headers, await reader.readexactly(size))
        requests.cancel_scope.cancel()


def main() -> None:
    """Run on the socket that is descriptor ``argv[1]``, with the host's version and the allowed hosts."""
    not_dumpable()
    leave_the_end_to_the_host()
    logging.basicConfig(level=logging.ERROR)
    _, descriptor, version, *allowed = sys.argv
    receivers = Receivers(frozenset(allowed), version)
    asyncio.run(serve(socket.socket(fileno=int(descriptor)), receivers))


if __name__ == "__main__":
    main()
