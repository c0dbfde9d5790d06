"""Starting on PostgreSQL: what is refused, and what stays secret."""

from __future__ import annotations

import psutil
import pytest

from shared.errors import StoreError, StoreVersion
from shared.store.postgres.database import Place
from shared.store.postgres.opening import open_shared_store
from tests.cluster.conftest import Join
from tests.contract.store.making import T0, a_run
from tests.postgres import execute
from tests.running import directive


async def test_a_newer_programs_database_is_refused(database: str) -> None:
    store = await open_shared_store(Place(database))
    await store.close()
    await execute("INSERT INTO schema_migrations VALUES (999)", database)
    with pytest.raises(StoreVersion, match="999"):
        await open_shared_store(Place(database))


@pytest.mark.parametrize("broken", ["/nowhere", ":wrong@127.0.0.1:1/x"])
async def test_an_address_that_leads_nowhere_is_a_sentence_without_the_password(
    database: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.store.postgres.database.PATIENCE_S", 0.2)
    scheme, _, rest = database.partition("://")
    user = rest.partition(":")[0]
    url = f"{database.rpartition('/')[0]}{broken}" if broken.startswith("/") else f"{scheme}://{user}{broken}"
    with pytest.raises(StoreError) as refused:
        await open_shared_store(Place(url))
    assert "password" not in str(refused.value)
    assert "wrong" not in str(refused.value)


async def test_what_postgresql_cannot_hold_is_kept_all_the_same(database: str) -> None:
    store = await open_shared_store(Place(database))
    odd = "a\0b\ufdd0c\ufdd00\ufdd01\0\0é\U0001f600"
    await store.conversations.create("c", T0)
    new = a_run("1")
    assert new.message is not None
    message = type(new.message)(new.message.id, "user", [{"type": "text", "text": odd}], odd, odd, odd)
    await store.runs.begin(a_run("1", message=message))
    (stored,) = (await store.conversations.messages("c", limit=10, cursor=None)).items
    assert (stored.text, stored.sender, stored.sender_name) == (odd, odd, odd)
    assert (await store.conversations.history("c"))[0].blocks == [{"type": "text", "text": odd}]
    await store.close()


def test_the_address_is_in_no_environment_command_line_or_log(join: Join, database: str) -> None:
    host = join()
    password = database.split(":")[2].partition("@")[0]
    shown = {"name": "exec", "input": {"command": "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null"}}
    with host.client() as client:
        answer = client.post(
            "/chat", json={"message": directive(steps=[{"tools": [shown]}, {"text": "$results"}])}
        )
        said = {"name": "mcp__picoclaw__send_message", "input": {"text": f"it is {database} {password}"}}
        told = client.post("/chat", json={"message": directive(tools=[said])})
    for text in (answer.text, told.text, host.log_text):
        assert password not in text
    for process in host.tree()[1:]:
        with process.oneshot():
            assert password not in " ".join(process.cmdline())
            assert not any(password in value or "_tools_" in value for value in _environment(process))


def _environment(process: psutil.Process) -> list[str]:
    try:
        return list(process.environ().values())
    except psutil.Error:
        return []
