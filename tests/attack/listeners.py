"""Services that nothing inside may reach; they hand out a canary and remember every visit."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from pathlib import Path


class Listeners:
    """TCP, UDP, and Unix sockets by path and abstract name, served by one thread each until closed."""

    def __init__(self, directory: Path, canary: str) -> None:
        self.visits: list[str] = []
        self._canary = canary.encode()
        self._sockets: list[socket.socket] = []
        self.abstract = f"attack-{secrets.token_hex(6)}"
        self.unix, self.dgram = str(directory / "stream.sock"), str(directory / "dgram.sock")
        tcp = self._listen(socket.AF_INET, ("127.0.0.1", 0), "tcp")
        udp = self._receive(socket.AF_INET, ("127.0.0.1", 0), "udp")
        self._listen(socket.AF_UNIX, self.unix, "unix stream")
        self._receive(socket.AF_UNIX, self.dgram, "unix datagram")
        self._listen(socket.AF_UNIX, f"\0{self.abstract}", "abstract")
        self.tcp, self.udp = tcp.getsockname()[1], udp.getsockname()[1]
        for path in (self.unix, self.dgram):
            os.chmod(path, 0o777)

    def close(self) -> None:
        for each in self._sockets:
            each.close()

    def _listen(self, family: int, address: object, name: str) -> socket.socket:
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.bind(address)  # type: ignore[arg-type] # each family has its own kind of address
        listening.listen(64)
        self._serve(listening, lambda: self._welcome(listening, name))
        return listening

    def _welcome(self, listening: socket.socket, name: str) -> None:
        visitor, _ = listening.accept()
        self.visits.append(name)
        with visitor:
            visitor.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + self._canary)

    def _receive(self, family: int, address: object, name: str) -> socket.socket:
        receiving = socket.socket(family, socket.SOCK_DGRAM)
        receiving.bind(address)  # type: ignore[arg-type] # each family has its own kind of address

        def note() -> None:
            receiving.recv(4096)
            self.visits.append(name)

        self._serve(receiving, note)
        return receiving

    def _serve(self, served: socket.socket, once: object) -> None:
        assert callable(once)
        self._sockets.append(served)

        def loop() -> None:
            while True:
                try:
                    once()
                except OSError:
                    if served.fileno() == -1:
                        return

        threading.Thread(target=loop, daemon=True).start()
