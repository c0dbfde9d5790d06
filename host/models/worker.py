"""``python -m host.models.worker``: the process that holds the SDK's clients and parses what they read.

It serves one host, over the socket that is descriptor ``argv[1]``, and ends when that closes. Its environment
has proxies and certificates only; credentials come over the socket.
"""

import asyncio
import traceback
from collections.abc import Callable
from functools import partial

from host.models import process
from host.models.anthropic_model import AnthropicModel, Pacer, make_client
from host.models.process import ModelConfig
from host.ports import Delta, ModelError
from shared.children import Link, serve
from shared.jsons import dump_bytes, loads


class Worker(Link):
    """Answers the host's requests side by side."""

    def __init__(self, closed: Callable[[], None]) -> None:
        super().__init__(process.MOST, closed)
        self._configs: dict[int, ModelConfig] = {}
        self._models: dict[int, AnthropicModel] = {}
        self._replies: dict[int, asyncio.Task[None]] = {}
        self._outgoing: list[tuple[int, list[Delta], bytes]] = []
        self._pacer = Pacer()

    def pause_writing(self) -> None:
        """Hold the streams up until the host has read what it was sent (asyncio's call)."""
        self._pacer.room.clear()

    def resume_writing(self) -> None:
        """Go on (asyncio's call)."""
        self._pacer.room.set()

    def data_received(self, data: bytes) -> None:
        """Take the host's frames in (asyncio's call)."""
        for kind, number, client, body in process.frames_of(self.frames.feed(data)):
            if kind == process.CLIENT:
                self._configs[client] = ModelConfig(**loads(body))
            elif kind == process.ASK:
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
            end = process.frame(process.REPLY, number, dump_bytes(reply))
        except ModelError as error:
            end = process.frame(process.FAILURE, number, dump_bytes(vars(error)))
        except Exception:  # noqa: BLE001 - the host says and logs it
            end = process.frame(process.FAULT, number, traceback.format_exc().encode())
        self._say(number, [], end)

    def _answered(self, number: int, task: asyncio.Task[None]) -> None:
        del self._replies[number]
        if task.cancelled():  # perhaps before it began
            self._say(number, [], process.frame(process.CANCELLED, number))

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
        if self.transport.is_closing():
            return
        data = bytearray()
        for number, pieces, end in outgoing:
            if pieces:
                data += process.frame(process.PIECES, number, process.pieces_body(pieces))
                pieces.clear()
            data += end
        self.transport.write(data)


if __name__ == "__main__":
    serve(Worker)
