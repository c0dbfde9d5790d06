"""A command's output, bounded while it is read: the beginning and the end are kept."""

from __future__ import annotations


class Output:
    """Keeps at most ``limit`` bytes: the first half and the last half."""

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
