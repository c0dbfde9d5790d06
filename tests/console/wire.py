"""A wire between browser and host that can be cut, and that counts what is asked over it."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Wire:
    """Forwards connections to a port until it is cut; ``cut`` ends all of them, ``open`` lets new ones in."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._letting_in = True
        self._closed = False
        self.sent = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Wire:
        self._start(threading.Thread(target=self._accept, daemon=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        _end(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join(60)
        self._listener.close()

    def cut(self, *, stay: bool = False) -> None:
        """End every connection; ``stay`` keeps new ones out until ``open``."""
        with self._lock:
            self._letting_in = not stay
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                _end(end)

    def open(self) -> None:
        self._letting_in = True

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._letting_in:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._port), timeout=60)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._pairs.append((near, far))
            self._start(threading.Thread(target=self._carry, args=(near, far, True), daemon=True))
            self._start(threading.Thread(target=self._carry, args=(far, near, False), daemon=True))

    def _start(self, thread: threading.Thread) -> None:
        self._threads.append(thread)
        thread.start()

    def _carry(self, source: socket.socket, target: socket.socket, outward: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if outward:
                    with self._lock:
                        self.sent += piece
                target.sendall(piece)
        for end in (source, target):
            _end(end)
            end.close()


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
