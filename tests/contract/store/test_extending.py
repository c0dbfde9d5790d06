"""docs/extending.md, "Add a column", done on every engine: what stands there is what is needed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import make_dataclass
from pathlib import Path
from shutil import copytree
from textwrap import dedent
from typing import Any, Final

import pytest

from shared.store.postgres import migrations as postgres_migrations
from shared.store.postgres.database import Place
from shared.store.postgres.opening import open_shared_store
from shared.store.rows import reader
from shared.store.sql import migrations
from shared.store.sql.conversations import SELECT, Conversations
from shared.store.sqlite import store as sqlite_store
from shared.store.sqlite.store import SqliteStore
from shared.store.store import Store
from shared.values import Conversation
from tests.postgres import fresh_database, needs_postgres

DOCUMENT: Final = Path(__file__).parents[3] / "docs" / "extending.md"
SECTION: Final = DOCUMENT.read_text().partition("## Add a column")[2].partition("\n## ")[0]
COLUMN, FIELD, METHOD, TABLE = (
    dedent(block) for block in re.findall(r"```(?:python|sql)\n(.*?)```", SECTION, re.DOTALL)
)

FILES: Final = re.findall(r"`shared/store/sql/schema/(\d+_\w+\.sql)`", SECTION)


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(code, names)
    return names


def use(patch: pytest.MonkeyPatch, module: Any, engine: Any, folder: Path) -> None:
    """Have a module's migrations be those that the document adds to."""
    made = copytree(migrations.SCHEMA, folder / "schema")
    for file, statements in zip(FILES, (COLUMN, TABLE), strict=True):
        (made / file).write_text(statements)
    patch.setattr(migrations, "SCHEMA", made)
    newer = migrations.versions(engine, module.WORDS)
    assert newer[:-2] == module.STEPS
    patch.setattr(module, "STEPS", newer)
    patch.setattr(module, "SCHEMA_VERSION", len(newer))


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Store]:
    store = SqliteStore(folder / "store.db")
    yield store
    await store.close()


@asynccontextmanager
async def postgres(folder: Path) -> AsyncIterator[Store]:
    with fresh_database() as url:
        store = await open_shared_store(Place(url))
        yield store
        await store.close()


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=needs_postgres)])
async def test_a_column_and_a_table_are_added_in_one_place_for_every_engine(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, {"sqlite": sqlite_store, "postgres": postgres_migrations}[engine], engine, tmp_path)
    async with {"sqlite": sqlite, "postgres": postgres}[engine](tmp_path) as store:
        await store.conversations.create("c", 1)
        await run(METHOD)["paint"](store.conversations, "c", "blue")
        name, kind, default = re.fullmatch(r'(\w+): (\w+) = "(\w+)"\n', FIELD).groups()  # type: ignore[union-attr]
        coloured = make_dataclass("Coloured", [(name, kind, default)], bases=(Conversation,), frozen=True)
        to_coloured = reader(coloured, temporary=bool, running=bool, trusted=bool)
        found = await Conversations._one(store.conversations, to_coloured, f"{SELECT} WHERE c.id = $1", "c")
        assert found is not None
        assert (found.id, found.trusted, found.colour) == ("c", True, "blue")
        added = "INSERT INTO palettes (id, conversation_id, colours, created_at) VALUES ($1, $2, $3, $4)"
        for name in ("p1", "p2"):
            await store.conversations._change(added, name, "c", "[]", 2**40)
        rows = await store._engine.read(lambda tx: tx.fetch("SELECT * FROM palettes ORDER BY number"))
        assert [(row["number"], row["id"], row["created_at"]) for row in rows] == [
            (1, "p1", 2**40),
            (2, "p2", 2**40),
        ]
        await store.conversations.delete("c")
        assert await store._engine.read(lambda tx: tx.fetch("SELECT * FROM palettes")) == []
