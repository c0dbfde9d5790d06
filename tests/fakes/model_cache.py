"""The prompt cache's rule, so that usage tells how well a client keeps its prefix stable.

Rule (https://platform.claude.com/docs/en/build-with-claude/prompt-caching): the prompt is tools, then system,
then messages. Each ``cache_control`` writes an entry for the prefix that ends there. A request reads the
longest entry that ends at one of its breakpoints or at most 20 blocks before one. Prefixes below a minimum
are not cached; more than four breakpoints are an error. Entries live 5 minutes from their last use and belong
to one model.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from shared.jsons import dump_bytes
from shared.usage_values import Usage
from tests.fakes.protocol import tokens

LOOKBACK_BLOCKS: Final = 20
MAX_BREAKPOINTS: Final = 4
TTL_SECONDS: Final = 300.0
MAX_ENTRIES: Final = 20_000


@dataclass(slots=True)
class PromptCache:
    """Prefixes seen, newest use last; ``minimum`` is the shortest prefix that is cached, in tokens."""

    minimum: int = 1024
    entries: OrderedDict[bytes, float] = field(default_factory=OrderedDict)

    def usage(self, request: dict[str, Any], output_tokens: int) -> Usage:
        """Count the request's tokens as read from the cache, written to it, or neither; then remember it."""
        ends = list(_prefixes(request))
        breakpoints = [at for at, end in enumerate(ends) if end.breakpoint]
        if len(breakpoints) > MAX_BREAKPOINTS:
            raise ValueError(f"A maximum of {MAX_BREAKPOINTS} blocks may have cache_control.")
        total = ends[-1].tokens if ends else 0
        read = max((self._read(ends, at) for at in breakpoints), default=0)
        written = max((ends[at].tokens for at in breakpoints), default=0)
        self._write([ends[at] for at in breakpoints])
        cached = max(read, written if written >= self.minimum else 0)
        return Usage(total - cached, output_tokens, cached - read, read)

    def _read(self, ends: list[_Prefix], at: int) -> int:
        now = time.monotonic()
        for end in reversed(ends[max(0, at - LOOKBACK_BLOCKS) : at + 1]):
            expires = self.entries.get(end.digest)
            if expires is not None and expires > now:
                self._touch(end.digest)
                return end.tokens
        return 0

    def _write(self, ends: list[_Prefix]) -> None:
        for end in ends:
            if end.tokens >= self.minimum:
                self._touch(end.digest)
        while len(self.entries) > MAX_ENTRIES:
            self.entries.popitem(last=False)

    def _touch(self, digest: bytes) -> None:
        self.entries[digest] = time.monotonic() + TTL_SECONDS
        self.entries.move_to_end(digest)


@dataclass(frozen=True, slots=True)
class _Prefix:
    digest: bytes
    tokens: int
    breakpoint: bool


def _prefixes(request: dict[str, Any]) -> Iterator[_Prefix]:
    digest, total = blake2b(str(request.get("model")).encode(), digest_size=16), 0
    blocks = list(_blocks(request))
    automatic = len(blocks) - 1 if request.get("cache_control") else -1
    for at, (kind, block) in enumerate(blocks):
        marked = isinstance(block, dict) and block.get("cache_control") is not None
        if marked:
            block = {key: value for key, value in block.items() if key != "cache_control"}
        text = dump_bytes(block)
        digest.update(b"%b %d\n" % (kind.encode(), len(text)))
        digest.update(text)
        total += tokens(text.decode())
        yield _Prefix(digest.digest(), total, marked or at == automatic)


def _blocks(request: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for tool in request.get("tools") or []:
        yield "tool", tool
    for block in _listed(request.get("system") or []):
        yield "system", block
    for message in request["messages"]:
        for block in _listed(message["content"]):
            yield message["role"], block


def _listed(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
