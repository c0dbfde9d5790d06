"""Each principal's runs work in a place of their own, and know its own words and no others."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from host.app import Host, open_host
from host.runs.spec import RunSpec
from shared.clock import now_ms
from shared.principals import Principal, Terms, stored_name
from shared.settings import load


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other uids can pass through."""
    root = Path(tempfile.mkdtemp(prefix="spaces-"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root, ignore_errors=True)


@asynccontextmanager
async def a_host(place: Path, **environment: str) -> AsyncIterator[Host]:
    environ = {
        "HOME": str(place),
        "PICOCLAW_HOME": str(place / "home"),
        "API_TOKEN": "t" * 32,
        "SCHEDULER": "external",
    }
    async with open_host(load({**environ, **environment}), lambda _: None) as host:
        await host.sandbox.ready()
        yield host


async def a_principal(host: Host, name: str, **terms: Any) -> Principal:
    principal = Principal(
        f"prin-{uuid4()}", name, directory=uuid4().hex, created_at=now_ms(), terms=Terms(**terms)
    )
    return await host.ledger.store.principals.add(principal, host.sandbox.policy.uids)


async def say(
    host: Host, principal: Principal | None, words: str, conversation: str = "main", **more: Any
) -> str:
    """Have a conversation of a principal's go on; return the answer."""
    store = host.ledger.store
    conversation_id = conversation if principal is None else stored_name(principal.id, conversation)
    if principal is not None:
        await store.conversations.ensure(conversation_id, now_ms(), principal_id=principal.id)
    run = await host.runs.start(RunSpec(words, conversation_id, **more))
    answer = await run.wait()
    return str(answer["result"])


async def test_a_principals_runs_work_in_its_own_directory_and_see_its_own_words(place: Path) -> None:
    async with a_host(place) as host:
        one, two = await a_principal(host, "One"), await a_principal(host, "Two")
        await say(host, None, "remember that I like water")
        await say(host, one, "remember that I like tea")
        assert "water" in await say(host, None, "what do you remember?")
        assert "tea" in await say(host, one, "what do you remember?", "another")
        for principal in (two, None):
            assert "tea" not in await say(host, principal, "what do you remember?")
        assert "water" not in await say(host, one, "what do you remember?")
        root = host.settings.principals_dir / one.directory
        assert str(root) in await say(host, one, "run `pwd`")
        if os.geteuid() == 0:
            assert one.uid != two.uid
            assert str(one.uid) in await say(host, one, "run `id -u`")
            assert (root / "MEMORY.md").stat().st_uid == one.uid
