"""A home of breakcafe/picoclaw: ``messages.db``, the memory folder, the organisation's folder, ``.env``.

Formats: its src/db.ts (tables), src/config.ts (folders and variables), src/task-scheduler.ts (schedules).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from host.moving_in.arrivals import Arrivals, Broken, Row, derived_id, instant, message, read_text, record
from shared.errors import StoreError
from shared.ids import MESSAGE, TASK_RUN
from shared.store.sqlite.content import rows_of
from shared.values import Role

DATABASES: Final = ("store/messages.db", "messages.db")
TEMPORARY: Final = "task-"
"""How the conversation of an isolated run of a task begins."""
SESSION_FOLDER: Final = ".claude"

TABLES: Final = ("conversations", "messages", "outbound_messages", "scheduled_tasks", "task_run_logs")
KEPT: Final = ("id", "conversation_id", "prompt", "schedule_type", "context_mode", "status")
GONE: Final = ("STORE_DIR", "MEMORY_DIR", "LOCAL_DB_PATH", "SESSIONS_DIR")


def database_of(home: Path) -> Path | None:
    """Return the home's database, None where it isn't such a home."""
    return next((home / name for name in DATABASES if (home / name).is_file()), None)


def read(home: Path, timezone: str, now: int) -> Arrivals:
    """Return what moves in; ``timezone`` is that of its schedules. Raises Broken."""
    database = database_of(home)
    if database is None:
        raise Broken(f"{home}: no store/messages.db, so no home of breakcafe/picoclaw")
    arrivals = Arrivals()
    try:
        tables = rows_of(database, TABLES)
    except StoreError as error:
        raise Broken(f"{database}: {error}") from None
    with record(str(database)):
        _conversations(tables, arrivals, timezone)
        _tasks(tables, arrivals, timezone, now)
    memory = home / "memory"
    arrivals.add_files(memory, leave=frozenset({SESSION_FOLDER}))
    arrivals.add_files(memory / SESSION_FOLDER / "skills", below="skills")
    if (memory / SESSION_FOLDER).is_dir():
        arrivals.lost.append(f"{memory / SESSION_FOLDER}: sessions of its SDK (its skills are taken)")
    if (home / "org").is_dir():
        arrivals.changed.append(f"{home / 'org'}: stays where it is; set ORG_DIR to it")
    _environment(home / ".env", arrivals)
    return arrivals


def _conversations(tables: Mapping[str, list[Row]], arrivals: Arrivals, timezone: str) -> None:
    messages: dict[str, list[Row]] = {}
    unheard = [row for row in tables["outbound_messages"] if not row["delivered"]]
    for row in sorted(
        [*tables["messages"], *map(_as_message, unheard)], key=lambda row: str(row["created_at"])
    ):
        messages.setdefault(row["conversation_id"], []).append(_message(row, timezone))
    if unheard:
        arrivals.changed.append(
            f"{len(unheard)} messages that nobody fetched stand in their conversations now"
        )
    empty = 0
    for row in tables["conversations"]:
        said = messages.pop(row["id"], [])
        if not said and row["id"].startswith(TEMPORARY):
            empty += 1
            continue
        where = f"conversation {row['id']}"
        born, active = instant(row["created_at"], where), instant(row["last_activity"], where)
        arrivals.add_conversation(row["id"], said, born, active)
    if messages:
        left = sum(map(len, messages.values()))
        arrivals.lost.append(f"{left} messages, whose conversations are not there")
    if empty:
        arrivals.lost.append(f"{empty} empty conversations of isolated task runs (the tasks' log is taken)")


def _as_message(outbound: Row) -> Row:
    """Return the row of a message that says what an outbound one did."""
    message_id = derived_id(MESSAGE, outbound["conversation_id"], str(outbound["id"]))
    said = {"role": "assistant", "sender": None, "sender_name": None, "content": outbound["text"]}
    return {**outbound, **said, "id": message_id}


def _message(row: Row, timezone: str) -> Row:
    role: Role = "assistant" if row["role"] == "assistant" else "user"
    who = row["sender"] or row["role"]
    created = instant(row["created_at"], f"message {row['id']}")
    return message(row["id"], role, row["content"], (who, row["sender_name"] or who), created, timezone)


def _tasks(tables: Mapping[str, list[Row]], arrivals: Arrivals, timezone: str, now: int) -> None:
    taken = {
        row["id"] for row in tables["scheduled_tasks"] if _task(row, arrivals, timezone=timezone, now=now)
    }
    for row in tables["task_run_logs"]:
        if row["task_id"] in taken:
            ended = instant(row["run_at"], f"run log {row['id']}")
            arrivals.add("task_runs", _task_run(row, ended))


def _task(row: Row, arrivals: Arrivals, *, timezone: str, now: int) -> bool:
    where = f"task {row['id']}"
    if not arrivals.has_conversation(row["conversation_id"]):
        arrivals.lost.append(f"{where}: its conversation {row['conversation_id']} isn't there")
        return False
    return arrivals.add_task(
        {
            **{name: row[name] for name in KEPT},
            "schedule_value": str(row["schedule_value"]),
            "timezone": timezone,
            "created_at": instant(row["created_at"], where),
            "last_run": row["last_run"] and instant(row["last_run"], where),
        },
        next_run=row["next_run"] and instant(row["next_run"], where),
        now=now,
    )


def _task_run(row: Row, ended: int) -> Row:
    began = ended - int(row["duration_ms"])
    return {
        "id": derived_id(TASK_RUN, row["task_id"], str(row["id"])),
        **{name: row[name] for name in ("task_id", "result", "error")},
        "slot": f"moved-{row['id']}",
        "state": row["status"],
        "attempt": 1,
        "fence": 1,
        "owner": "",
        "lease_until": 0,
        "plan": 0,
        "started_at": began,
        "finished_at": ended,
    }


def _environment(path: Path, arrivals: Arrivals) -> None:
    """Tell what becomes of each variable of ``.env``, without its value."""
    for line in read_text(path).splitlines() if path.is_file() else ():
        name, equals, _ = line.removeprefix("export ").strip().partition("=")
        if equals and not name.startswith("#"):
            gone = "names another folder here; see docs/configuration.md"
            what = gone if name in GONE else "belongs into the environment of this host too"
            arrivals.changed.append(f"{path}: {name} {what}")
