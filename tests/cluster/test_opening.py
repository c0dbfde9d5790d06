"""Starting on PostgreSQL: what is refused, and what stays secret."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import anyio
import asyncpg  # type: ignore[import-untyped]
import psutil
import pytest

from shared.errors import StoreError, StoreVersion, Unavailable
from shared.principals import OPERATOR
from shared.store.contract import Tx
from shared.store.postgres import migrations
from shared.store.postgres.database import TRIES, Database, Place
from shared.store.postgres.migrations import LOCK, SCHEMA_VERSION, STEPS, migrate
from shared.store.postgres.opening import open_shared_store
from tests.cluster.conftest import Join
from tests.contract.store.making import T0, a_run
from tests.postgres import execute, fresh_database
from tests.running import directive, new_host, until
from tests.store.landed_schemas import LANDED, digest


async def test_a_newer_programs_database_is_refused(database: str) -> None:
    store = await open_shared_store(Place(database))
    await store.close()
    await execute("INSERT INTO schema_migrations VALUES (999)", database)
    with pytest.raises(StoreVersion, match="999"):
        await open_shared_store(Place(database))


CATALOGUE = """SELECT 'column', c.relname::text, a.attnum::text, a.attname::text,
        format_type(a.atttypid, a.atttypmod), a.attnotnull::text, a.attidentity::text,
        (SELECT collname::text FROM pg_collation WHERE oid = a.attcollation), pg_get_expr(d.adbin, d.adrelid)
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind = 'r'
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0
    UNION ALL SELECT 'index', indexdef, '', '', '', '', '', '', '' FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT 'constraint', conname::text, pg_get_constraintdef(oid), '', '', '', '', '', ''
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
    UNION ALL SELECT 'trigger', pg_get_triggerdef(oid), '', '', '', '', '', '', ''
        FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT 'function', pg_get_functiondef(oid), '', '', '', '', '', '', ''
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT 'policy', tablename::text, policyname::text, cmd, qual, with_check, '', '', ''
        FROM pg_policies WHERE schemaname = 'public'
    UNION ALL SELECT 'rows', relname::text, relrowsecurity::text, '', '', '', '', '', ''
        FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"""


async def schema(url: str) -> list[str]:
    database = Database(Place(url, connections=1))
    found = await database.read(lambda tx: tx.fetch(CATALOGUE))
    await database.close()
    return sorted("".join(" ".join(map(str, cast(tuple[object, ...], row))).split()) for row in found)


async def migrate_to(version: int, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a database as the program of that version made it, with a conversation in it."""
    database = Database(Place(url, connections=1))
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "STEPS", STEPS[:version])
        patch.setattr(migrations, "SCHEMA_VERSION", version)
        await migrate(database)
    await database.close()
    await execute(
        "INSERT INTO conversations (id, session_id, owner_id, created_at, last_activity)"
        " VALUES ('old', 's', 'old', 1, 1)",
        url,
    )


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
async def test_every_earlier_version_becomes_the_present_one(
    database: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate_to(version, database, monkeypatch)
    store = await open_shared_store(Place(database))
    assert [one.id for one in (await store.conversations.page(limit=9, cursor=None)).items] == ["old"]
    assert (await store.counts()).conversations == 1
    await store.close()
    with fresh_database() as fresh:
        await (await open_shared_store(Place(fresh))).close()
        assert await schema(database) == await schema(fresh)


async def test_all_that_a_store_of_before_principals_has_is_the_operators(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = next(number for number, step in enumerate(STEPS) if "CREATE TABLE principals" in "".join(step))
    await migrate_to(before, database, monkeypatch)
    await execute("INSERT INTO usage_by_day VALUES ('2026-01-31', 5, 3, 1, 2, 4, 8, 16, 32)", database)
    store = await open_shared_store(Place(database))
    conversations = await store.conversations.page(limit=9, cursor=None, principal_id=OPERATOR)
    assert [each.id for each in conversations.items] == ["old"]
    host = await store.usage.by_day(limit=9, cursor=None)
    assert host == await store.usage.by_day(limit=9, cursor=None, principal_id=OPERATOR)
    assert [(day.runs, day.spending.microdollars) for day in host.items] == [(3, 32)]
    await store.close()


@pytest.mark.parametrize("version", LANDED["postgres"])
async def test_landed_migrations_make_what_they_made_when_they_landed(
    database: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate_to(version, database, monkeypatch)
    assert digest(await schema(database)) == LANDED["postgres"][version]


async def test_a_search_knows_capitals_in_a_database_whose_locale_knows_none() -> None:
    with fresh_database("LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0") as fresh:
        store = await open_shared_store(Place(fresh))
        await store.conversations.create("Ärger", T0)
        for sought in ("ärg", "Ärg", "A\u0308RG"):
            found = await store.conversations.page(limit=9, cursor=None, search=sought)
            assert [each.id for each in found.items] == ["Ärger"], sought
        await store.close()


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


def test_a_store_dir_that_cannot_be_had_keeps_nobody_from_the_database(join: Join, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    host = join({"STORE_DIR": str(tmp_path / "file/store")})
    with host.client() as client:
        assert client.post("/chat", json={"message": directive(text="fine")}).json()["result"] == "fine"


async def test_a_migration_that_is_waited_for_is_named_when_the_host_is_told_to_stop(
    database: str, tmp_path: Path
) -> None:
    """A migration isn't torn: it holds up the end of the host for as long as a host waits."""
    other = await asyncpg.connect(database)
    await other.execute("SELECT pg_advisory_lock($1)", LOCK)
    opening = new_host(tmp_path / "host", "http://127.0.0.1:9", {"DATABASE_URL": database}).start(wait=False)
    await anyio.to_thread.run_sync(until, lambda: "waiting for another host" in opening.log_text)
    assert opening.process is not None
    opening.process.terminate()
    assert await anyio.to_thread.run_sync(opening.process.wait, 60) == 1
    assert "DATABASE_URL does not answer: ending without it" in opening.log_text
    assert "STORE_DIR" not in opening.log_text
    await other.close()


async def test_a_database_that_stays_locked_does_not_answer_in_time(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.store.postgres.driver.STATEMENT_S", 0.5)
    monkeypatch.setattr("shared.store.postgres.database.WAIT_S", 0.1)
    other = await asyncpg.connect(database)
    await other.execute("SELECT pg_advisory_lock($1)", LOCK)
    with pytest.raises(StoreError, match="DATABASE_URL: the database does not answer in time"):
        await open_shared_store(Place(database))
    await other.close()


async def test_what_the_server_undoes_again_and_again_ends_as_busy(database: str) -> None:
    opened = Database(Place(database))
    tries = 0

    async def conflicting(tx: Tx) -> None:
        nonlocal tries
        tries += 1
        await tx.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")

    try:
        with pytest.raises(Unavailable, match="busy"):
            await opened.write(conflicting)
        assert tries == TRIES
    finally:
        await opened.close()
