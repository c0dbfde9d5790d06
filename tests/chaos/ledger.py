"""What clients were told, to be compared with what is stored. Everything here was acknowledged."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Ledger:
    """Promises by kind, and every text that was ever sent, so that doubles are noticed."""

    messages: set[str] = field(default_factory=set)
    runs: dict[str, str] = field(default_factory=dict)
    """Run id to the status its answer had."""
    outbound: set[str] = field(default_factory=set)
    tasks: set[str] = field(default_factory=set)
    triggered: set[tuple[str, str]] = field(default_factory=set)
    """Task id and the run that served the trigger."""
    sent: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    keys: dict[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    """Idempotency key to the body it came with and the run it stood for."""

    def answered(self, body: dict[str, Any]) -> None:
        """Note the answer of a chat or a trigger."""
        self.runs[body["run_id"]] = body["status"]
        self.outbound |= {message["id"] for message in body["outbound_messages"]}

    @property
    def told(self) -> int:
        """Return how many promises there are."""
        return len(self.messages) + len(self.runs) + len(self.outbound) + len(self.tasks)

    def counts(self) -> str:
        """Say how much was promised."""
        return (
            f"{len(self.runs)} runs, {len(self.messages)} messages, {len(self.outbound)} outbound, "
            f"{len(self.tasks)} tasks, {len(self.triggered)} triggers"
        )

    def compare(self, database: Path) -> list[str]:
        """Return what is wrong with a database, a sentence each."""
        connection = sqlite3.connect(database)
        try:
            return [*self._missing(connection), *self._doubled(connection), *_unsound(connection)]
        finally:
            connection.close()

    def _missing(self, connection: sqlite3.Connection) -> list[str]:
        stored = {row[0] for row in connection.execute("SELECT id FROM messages")}
        runs = dict(connection.execute("SELECT id, state FROM runs").fetchall())
        outbound = {row[0] for row in connection.execute("SELECT id FROM outbound_messages")}
        tasks = {row[0] for row in connection.execute("SELECT id FROM scheduled_tasks")}
        served = {
            (row[0], row[1])
            for row in connection.execute("SELECT task_id, run_id FROM task_runs WHERE state = 'success'")
        }
        wrong = [f"message {each} is missing" for each in self.messages - stored]
        wrong += [f"outbound {each} is missing" for each in self.outbound - outbound]
        wrong += [f"task {each} is missing" for each in self.tasks - tasks]
        wrong += [f"task run {each} is missing" for each in self.triggered - served]
        wrong += [
            f"run {each} was told as {status}, is {runs.get(each)}"
            for each, status in self.runs.items()
            if runs.get(each) != status
        ]
        return wrong

    def _doubled(self, connection: sqlite3.Connection) -> list[str]:
        texts = Counter(
            row[0].split(" ")[0]
            for row in connection.execute("SELECT text FROM messages WHERE role = 'user'")
            if row[0]
        )
        said = Counter(row[0] for row in connection.execute("SELECT text FROM outbound_messages"))
        wrong = [f"{each} was stored {texts[each]} times" for each in self.sent if texts[each] > 1]
        wrong += [f"{each} was said {said[each]} times" for each in self.said if said[each] > 1]
        slots = connection.execute("SELECT task_id, slot FROM task_runs GROUP BY 1, 2 HAVING count(*) > 1")
        return wrong + [f"slot {row} ran twice" for row in slots]


def _unsound(connection: sqlite3.Connection) -> list[str]:
    verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
    wrong = [] if verdict == "ok" else [f"integrity: {verdict}"]
    wrong += [f"foreign key: {row}" for row in connection.execute("PRAGMA foreign_key_check")]
    seqs = connection.execute(
        "SELECT conversation_id FROM messages GROUP BY 1 HAVING max(seq) <> count(*) OR min(seq) <> 1"
    )
    wrong += [f"{row[0]} has a gap in its messages" for row in seqs]
    for name, table in (("conversations", "conversations WHERE temporary = 0"), ("tasks", "scheduled_tasks")):
        kept = connection.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()[0]
        counted = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        wrong += [] if kept == counted else [f"the counter of {name} is {kept}, not {counted}"]
    return wrong


def stuck(database: Path) -> list[str]:
    """Return conversations and claims that still count as running."""
    connection = sqlite3.connect(database)
    try:
        runs = connection.execute("SELECT conversation_id FROM runs WHERE state = 'running'").fetchall()
        claims = connection.execute("SELECT task_id, slot FROM task_runs WHERE state = 'running'").fetchall()
        return [json.dumps(row) for row in [*runs, *claims]]
    finally:
        connection.close()
