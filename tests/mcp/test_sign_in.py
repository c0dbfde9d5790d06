"""Signing in at other people's servers: tokens come, are renewed and end, and are nowhere in the clear."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest

from host.mcp_clients.external import ExternalServers, Reach, open_external
from host.mcp_clients.server_config import ServerConfig, SignIn
from host.mcp_clients.sign_in import Attempt
from host.runs.operators_servers import with_sign_in
from shared.errors import Conflict, InvalidInput, Misconfigured
from shared.settings import Settings, load
from shared.store.store import Store
from tests.mcp.authorization import Grants, guarded_server

BACK = "http://127.0.0.1:7624/callback"
KEY = "k" * 43


def settings_of(home: Path, **names: str) -> Settings:
    return load({"PICOCLAW_HOME": str(home), "API_TOKEN": "t" * 24, "SEAL_KEY": KEY, **names})


def config_of(url: str, store: Store, settings: Settings) -> ServerConfig:
    return with_sign_in({"notes": ServerConfig("http", url, trusted=True)}, store, settings)["notes"]


def sign_in_of(config: ServerConfig) -> SignIn:
    assert config.sign_in is not None
    return config.sign_in


async def browser(address: str) -> str:
    """Sign in as a person does: follow where it leads, and return where that ends."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        answer = await http.get(address)
    return answer.headers["location"]


async def signed_in(config: ServerConfig) -> None:
    async with anyio.create_task_group() as group:
        attempt = Attempt(sign_in_of(config), BACK, frozenset())
        await attempt.end(await browser(await attempt.begin(group)))


@asynccontextmanager
async def opened(config: ServerConfig) -> AsyncIterator[ExternalServers]:
    with anyio.fail_after(60):
        async with open_external({"notes": config}, Reach()) as found:
            yield found


async def noted(config: ServerConfig) -> str:
    async with opened(config) as found:
        assert found.problems == []
        (toolset,) = found.toolsets
        return (await toolset.call("mcp__notes__note", {"text": "milk"})).text


NEEDED = "The MCP server notes needs sign-in: picoclaw mcp login notes; its tools are missing."


async def test_a_server_says_that_it_needs_a_sign_in_and_serves_after_it(
    store: Store, database: Path, tmp_path: Path
) -> None:
    grants, settings = Grants(), settings_of(tmp_path)
    async with guarded_server(grants) as url:
        config = config_of(url, store, settings)
        async with opened(config) as found:
            assert found.problems == [NEEDED]
        assert grants.clients == {}, "a run registers nobody"
        await signed_in(config)
        assert "noted: milk" in await noted(config)
        # After a restart of the host, and for another address, which the token isn't for.
        assert "noted: milk" in await noted(config_of(url, store, settings))
        assert await sign_in_of(config_of(f"{url}/", store, settings)).load() == {}
        assert await sign_in_of(config_of(url, store, settings_of(tmp_path, SEAL_KEY="x" * 43))).load() == {}
        assert await sign_in_of(config).forget()
        async with opened(config_of(url, store, settings)) as found:
            assert found.problems == [NEEDED]
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"canary-" not in file.read_bytes(), file


async def test_a_token_that_ended_is_renewed_once_for_all_runs(store: Store, tmp_path: Path) -> None:
    grants = Grants(life_told=-10)
    async with guarded_server(grants) as url:
        config = config_of(url, store, settings_of(tmp_path))
        await signed_in(config)
        grants.life_told = 3600
        told: list[str] = []

        async def run() -> None:
            told.append(await noted(config))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(run)
        assert len(told) == 5
        assert grants.renewals == 1
        # One that the server no longer knows, although its time isn't over.
        grants.access.clear()
        assert "noted: milk" in await noted(config_of(url, store, settings_of(tmp_path)))
        assert grants.renewals == 2
        # One that can't be renewed any more either.
        grants.access.clear()
        grants.refresh.clear()
        async with opened(config) as found:
            assert found.problems == [NEEDED]


async def test_hosts_of_one_store_renew_a_token_once_between_them(store: Store, tmp_path: Path) -> None:
    grants = Grants(life_told=-10)
    async with guarded_server(grants) as url:
        one, another = (config_of(url, store, settings_of(tmp_path)) for _ in range(2))
        await signed_in(one)
        grants.life_told = 3600

        async def run(config: ServerConfig) -> None:
            assert "noted: milk" in await noted(config)

        for renewals in (1, 2):
            grants.renewing, grants.renew = anyio.Event(), anyio.Event()
            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    group.start_soon(run, one)
                    await grants.renewing.wait()
                    group.start_soon(run, another)
                    while not sign_in_of(another).lock.locked():
                        await anyio.sleep(0.01)
                    for _ in range(5):  # it looks at the store too
                        await anyio.sleep(0.01)
                    grants.renew.set()
            assert grants.renewals == renewals
            grants.access.clear()  # the second time none of them knows of an end
        # A host that went away in the middle holds nobody up for ever.
        assert await store.sign_ins.claim("notes", 1000)
        await run(another)
        assert grants.renewals == 3


async def test_a_run_that_is_cancelled_while_a_token_is_renewed_keeps_the_new_one(
    store: Store, tmp_path: Path
) -> None:
    grants = Grants(life_told=-10)
    async with guarded_server(grants) as url:
        config = config_of(url, store, settings_of(tmp_path))
        await signed_in(config)
        grants.life_told, grants.renew = 3600, anyio.Event()
        with anyio.fail_after(60):
            async with anyio.create_task_group() as run:
                run.start_soon(noted, config)
                await grants.renewing.wait()
                run.cancel_scope.cancel()
                grants.renew.set()
        assert "noted: milk" in await noted(config_of(url, store, settings_of(tmp_path)))
        assert grants.renewals == 1


async def test_a_token_that_ends_in_the_middle_of_a_run_says_what_to_do(store: Store, tmp_path: Path) -> None:
    grants = Grants()
    async with guarded_server(grants) as url:
        config = config_of(url, store, settings_of(tmp_path))
        await signed_in(config)
        async with opened(config) as found:
            (toolset,) = found.toolsets
            grants.access.clear()
            grants.refresh.clear()
            result = await toolset.call("mcp__notes__note", {"text": "milk"})
            assert result.is_error
            assert "needs sign-in: picoclaw mcp login notes" in result.text


async def test_what_is_pasted_must_be_the_answer_to_this_sign_in(store: Store, tmp_path: Path) -> None:
    async with guarded_server(Grants()) as url, anyio.create_task_group() as group:
        sign_in = sign_in_of(config_of(url, store, settings_of(tmp_path)))
        attempt = Attempt(sign_in, BACK, frozenset())
        address = await attempt.begin(group)
        for wrong in ("", "hello", "http://[?state=x", f"{BACK}?code=x", f"{BACK}?code=x&state=another"):
            with pytest.raises(InvalidInput, match="callback"):
                await attempt.end(wrong)
        state = httpx2.URL(address).params["state"]
        with pytest.raises(Conflict, match="not today"):
            await attempt.end(f"{BACK}?error=access_denied&error_description=not+today&state={state}")


async def test_without_a_key_nothing_is_kept_and_what_to_set_is_said(store: Store, tmp_path: Path) -> None:
    sign_in = sign_in_of(config_of("http://127.0.0.1:9/mcp", store, settings_of(tmp_path, SEAL_KEY="")))
    assert await sign_in.load() == {}
    with pytest.raises(Misconfigured, match="picoclaw secrets set seal_key"):
        sign_in.check_key()


async def test_a_server_that_is_down_or_offers_no_sign_in_says_so(store: Store, tmp_path: Path) -> None:
    sign_in = sign_in_of(config_of("http://127.0.0.1:9/mcp", store, settings_of(tmp_path)))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            attempt = Attempt(sign_in, BACK, frozenset())
            with pytest.raises(Conflict, match="failed"):
                await attempt.begin(group)
            with pytest.raises(InvalidInput, match="callback"):
                await attempt.end(f"{BACK}?code=x&state=y")
