"""``python -m host.models.worker``: the process that holds the SDK's clients and parses what they read.

It serves one host, over the socket that is descriptor ``argv[1]``, and ends when that closes. Its environment
has proxies and certificates only; credentials come over the socket.
"""

import asyncio
import gc
import logging
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Final, cast

import uvloop

from host.models import messages
from host.models.anthropic_model import AnthropicModel, Pacer, make_client
from host.models.messages import ModelConfig
from host.ports import Delta, ModelError
from shared.jsons import dump_bytes, loads
from shared.processes import Frames, leave_the_end_to_the_host, not_dumpable

SOCKET_BYTES: Final = 64 * 1024
"""What waits in the socket: what the host's event loop takes in at once is no more than that."""


class Worker(asyncio.Protocol):
    """Answers the host's requests side by side."""

    def __init__(self, closed: Callable[[], None]) -> None:
        self._closed = closed
        self._transport: asyncio.Transport
        self._frames = Frames(messages.MOST)
        self._configs: dict[int, ModelConfig] = {}
        self._models: dict[int, AnthropicModel] = {}
        self._replies: dict[int, asyncio.Task[None]] = {}
        self._outgoing: list[tuple[int, list[Delta], bytes]] = []
        self._pacer = Pacer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio's call)."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: the host is gone, or wants this process to go (asyncio's call)."""
        self._closed()

    def pause_writing(self) -> None:
        """Hold the streams up until the host has read what it was sent (asyncio's call)."""
        self._pacer.room.clear()

    def resume_writing(self) -> None:
        """Go on (asyncio's call)."""
        self._pacer.room.set()

    def data_received(self, data: bytes) -> None:
        """Take the host's frames in (asyncio's call)."""
        for kind, number, client, body in messages.frames_of(self._frames.feed(data)):
            if kind == messages.CLIENT:
                self._configs[client] = ModelConfig(**loads(body))
            elif kind == messages.ASK:
                self._replies[number] = task = asyncio.create_task(self._answer(number, client, body))
                task.add_done_callback(partial(self._answered, number))
            elif number in self._replies:
                self._replies[number].cancel()

    async def _answer(self, number: int, client: int, body: bytes) -> None:
        pieces: list[Delta] = []

        def tell(delta: Delta) -> None:
            if not pieces:
                self._say(number, pieces)
            pieces.append(delta)

        try:
            reply = await self._model(client).answer(body, tell)
            end = messages.frame(messages.REPLY, number, dump_bytes(reply))
        except ModelError as error:
            end = messages.frame(messages.FAILURE, number, dump_bytes(vars(error)))
        except Exception:  # noqa: BLE001 - the host says and logs it
            end = messages.frame(messages.FAULT, number, traceback.format_exc().encode())
        self._say(number, [], end)

    def _answered(self, number: int, task: asyncio.Task[None]) -> None:
        del self._replies[number]
        if task.cancelled():  # perhaps before it began
            self._say(number, [], messages.frame(messages.CANCELLED, number))

    def _model(self, client: int) -> AnthropicModel:
        model = self._models.get(client)
        if model is None:
            config = self._configs[client]
            model = AnthropicModel(make_client(config), self._pacer, silence_s=config.silence_s)
            self._models[client] = model
        return model

    def _say(self, number: int, pieces: list[Delta], end: bytes = b"") -> None:
        """Send the pieces, to which more may be added until then, when the event loop comes round."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._send)
        self._outgoing.append((number, pieces, end))

    def _send(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._transport.is_closing():
            return
        data = bytearray()
        for number, pieces, end in outgoing:
            if pieces:
                data += messages.frame(messages.PIECES, number, messages.pieces_body(pieces))
                pieces.clear()
            data += end
        self._transport.write(data)


async def serve(control: socket.socket) -> None:
    """Answer until the host closes the socket; what is being answered then ends with the process."""
    ended = asyncio.Event()
    control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    await asyncio.get_running_loop().create_connection(lambda: Worker(ended.set), sock=control)
    await ended.wait()


def main() -> None:
    """Run on the socket that is descriptor ``argv[1]``."""
    not_dumpable()
    leave_the_end_to_the_host()
    logging.basicConfig(level=logging.ERROR)
    gc.freeze()  # what was imported stays
    uvloop.run(serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
