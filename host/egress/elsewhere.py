"""Receivers in a process of their own (``python -m host.egress.elsewhere``): no run waits behind a request.

The host says a frame for each request: a line of JSON (number, address, headers), then the body. It hears
frames of answers that came together, a list of JSON: a number and an ``Answer`` each.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from host.egress.receivers import Answer, Receivers
from shared.children import Link, serve
from shared.jsons import dump_bytes, loads
from shared.processes import framed

logger = logging.getLogger("picoclaw.webhooks")

LONGEST: Final = 1 << 20
Request = tuple[int, str, dict[str, str], bytes]
"""Its number, the address, headers and the body."""
TOGETHER_S: Final = 0.02
"""So long answers wait for others: to be woken takes the host longer than to hear one of them."""


class Telling(Link):
    """The host's side. ``heard`` is called with the number of a request and its answer.

    ``lost`` is called when the process has ended: nobody knows what came of requests without an answer.
    """

    def __init__(self, heard: Callable[[int, Answer], None], lost: Callable[[], None]) -> None:
        super().__init__(LONGEST, lost)
        self._heard = heard

    def post(self, requests: Iterable[Request]) -> None:
        """Have bodies sent; together, because each time the process is woken costs both."""
        framed_all = (framed(dump_bytes([*head]) + b"\n" + body, LONGEST) for *head, body in requests)
        self.transport.write(b"".join(framed_all))

    def data_received(self, data: bytes) -> None:
        """Pass the answers on (asyncio's call)."""
        for frame in self.frames.feed(data):
            for number, *answer in loads(frame):
                self._heard(number, Answer(*answer))


class Teller(Link):
    """Makes the host's requests side by side."""

    def __init__(self, receivers: Receivers, closed: Callable[[], None]) -> None:
        super().__init__(LONGEST, closed)
        self._receivers = receivers
        self._requests = set[asyncio.Task[None]]()
        self._answers: list[Any] = []

    def data_received(self, data: bytes) -> None:
        """Begin requests (asyncio's call)."""
        for frame in self.frames.feed(data):
            head, _, body = frame.partition(b"\n")
            number, url, headers = loads(head)
            request = asyncio.create_task(self._answer(number, url, headers, body))
            self._requests.add(request)
            request.add_done_callback(self._requests.discard)

    async def _answer(self, number: int, url: str, headers: dict[str, str], body: bytes) -> None:
        answer = Answer(None, "the host failed to send it")
        try:
            answer = await self._receivers.post(url, body, headers)
        except Exception:
            logger.exception("A webhook could not be told")
        if not self._answers:
            asyncio.get_running_loop().call_later(TOGETHER_S, self._say)
        self._answers.append([number, *answer])

    def _say(self) -> None:
        self.transport.write(framed(dump_bytes(self._answers), LONGEST))
        self._answers.clear()


if __name__ == "__main__":
    _, _, version, *allowed = sys.argv
    serve(partial(Teller, Receivers(frozenset(allowed), version)))
