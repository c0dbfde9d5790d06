"""What one store exports moves into another of any engine: all of it, once, and nothing goes on by itself."""

from __future__ import annotations

import json
from pathlib import Path

from host.moving_in.arrivals import Arrivals, read_export
from shared.approval_values import ApprovalStatus
from shared.store import open_store
from shared.store.sql.chats import Chat
from shared.store.store import Store
from shared.store.volume import operator
from shared.values import Compaction
from tests.contract.store.making import T0, a_run, an_end
from tests.contract.store.test_approvals import a_request, decide, paused, status
from tests.contract.store.test_tokens import a_token


async def an_export(folder: Path) -> Arrivals:
    """Return the rows of a store with an agent's token, an allowed call, a cut-off run and a message."""
    store = open_store(folder / "elsewhere" / "store.db", folder / "elsewhere volume")
    await store.conversations.create("c", T0)
    await store.tokens.add(a_token("1"), b"digest")
    await paused(store, a_request())
    await decide(store, a_request())
    await store.outbound.add("c", "c", "hello", "Pico", T0)
    await store.conversations.create("long", T0)
    lease = await store.runs.begin(a_run("3", "long"))
    await store.compactions.add(lease, Compaction("summary", 1, 1, "what was said"), T0)
    await store.runs.finish(lease, an_end(), [], [], T0)
    await store.conversations.create("cut off", T0)
    await store.runs.begin(a_run("2", "cut off", background=True, again=3, asked="{}"))
    await store.runs.recover(T0, all_but="another")
    assert len(await store.approvals.ready(9)) == len(await store.runs.to_begin_again(9)) == 1
    await store.close()
    rows = list(operator.export(folder / "elsewhere volume"))
    file = folder / "export.jsonl"
    lines = [*rows, {"table": "end", "rows": len(rows)}]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return read_export(file)


async def test_an_export_moves_in_once_and_its_secrets_stay_behind(store: Store, tmp_path: Path) -> None:
    arrivals = await an_export(tmp_path)
    assert arrivals.lost == ["1 tokens and pins of tools: make new tokens"]
    assert (await store.arrivals.take(arrivals.rows))["audit"] == 2
    assert await store.arrivals.take(arrivals.rows) == {}
    assert len((await store.audit.page(limit=9, cursor=None)).items) == 2


async def test_what_was_allowed_or_cut_off_elsewhere_does_not_go_on_here(
    store: Store, tmp_path: Path
) -> None:
    await store.arrivals.take((await an_export(tmp_path)).rows)
    assert await store.approvals.ready(9) == []
    assert await store.runs.to_begin_again(9) == []
    assert await status(store, a_request()) is ApprovalStatus.INTERRUPTED


async def test_a_summary_comes_with_its_conversation_and_into_no_other(store: Store, tmp_path: Path) -> None:
    arrivals = await an_export(tmp_path)
    await store.arrivals.take(arrivals.rows)
    assert await store.compactions.latest("long") is not None
    await store.conversations.delete("long")
    await store.conversations.create("long", T0)
    assert (await store.arrivals.take(arrivals.rows))["messages"] == 1
    assert await store.compactions.latest("long") is None


async def test_a_chat_is_not_told_again_what_moves_into_its_conversation(
    store: Store, tmp_path: Path
) -> None:
    await store.conversations.create("c", T0)
    await store.channels.join(Chat("telegram", "7", True, "7", "Ann"), "c")
    assert (await store.arrivals.take((await an_export(tmp_path)).rows))["outbound_messages"] == 1
    assert await store.channels.chats_due("telegram", T0, limit=9) == []
