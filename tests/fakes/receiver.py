"""A receiver of webhooks: remembers what came, and answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from standardwebhooks import Webhook

WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event

    def verified(self, secret: str) -> dict[str, Any]:
        """Return the event as the published package gives it, which raises for a wrong signature."""
        event: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return event


@dataclass
class Answer:
    """What the receiver answers; ``hold`` keeps it from answering until it is set."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    hold: threading.Event | None = None


class Receiver:
    """Answers each request with the next of ``answers``, then with 200."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answers: list[Answer] = []
        self._came = threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def take(self, received: Received) -> Answer:
        with self._came:
            self.received.append(received)
            self._came.notify_all()
            return self.answers.pop(0) if self.answers else Answer()

    def wait(self, number: int) -> list[Received]:
        """Return all that came once it is so many."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.received) >= number, WITHIN_S), self.received
            return list(self.received)

    def wait_for(self, kind: str) -> Received:
        """Return the first event of a type once it is there."""

        def found() -> Received | None:
            return next((each for each in self.received if each.event["type"] == kind), None)

        with self._came:
            assert self._came.wait_for(lambda: found() is not None, WITHIN_S), self.received
            came = found()
            assert came is not None
            return came

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = receiver.take(Received(self.path, headers, body))
            if answer.hold is not None:
                answer.hold.wait(WITHIN_S)
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST  # noqa: N815 - the library's name

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Serve a receiver while the block runs."""
    with Receiver() as receiver:
        yield receiver
