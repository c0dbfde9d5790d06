"""What the tools of other people's servers looked like: a server that changes them is reported."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from host.mcp_clients.server_config import ServerConfig
from host.ports import ToolSpec
from shared import jsons
from shared.clock import now_ms
from shared.store.sql.tokens import ToolPins as KeptPins

MOST_PINS: Final = 1000
"""How many places are remembered; the one known longest makes room."""


class ToolPins:
    """Compares the tools of each place with how they were first seen in the life of the host.

    ``kept`` carries the operator's servers over a restart: the first look of a life is compared with the last
    one of the life before. A restart is therefore how a change is accepted.
    """

    def __init__(self, kept: KeptPins | None = None) -> None:
        self._kept = kept
        self._first: dict[bytes, bytes] = {}
        self._last: dict[bytes, bytes] = {}

    async def changed(self, name: str, config: ServerConfig, specs: Sequence[ToolSpec]) -> bool:
        """Return whether the tools differ from those to compare with."""
        place = hashlib.sha256(f"{name} {config.place}".encode()).digest()
        shown = jsons.dump_bytes([[spec.name, spec.description, dict(spec.input_schema)] for spec in specs])
        digest = hashlib.sha256(shown).digest()
        if self._last.get(place) != digest:
            before = await self._keep(place, digest, config)
            self._make_room(place)
            self._first.setdefault(place, before or digest)
            self._last[place] = digest
        return self._first[place] != digest

    async def _keep(self, place: bytes, digest: bytes, config: ServerConfig) -> bytes | None:
        # What requests bring is not kept: anyone who may ask could fill the store with it.
        if self._kept is None or not config.trusted:
            return None
        return await self._kept.swap(place, digest, now_ms())

    def _make_room(self, place: bytes) -> None:
        if len(self._first) >= MOST_PINS and place not in self._first:
            oldest = next(iter(self._first))
            del self._first[oldest], self._last[oldest]
