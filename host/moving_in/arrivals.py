"""What is found in another system's home, in this system's words; reading it changes nothing there."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from host.runs.prompt import person_message
from shared import jsons
from shared.clock import local, ms_of
from shared.errors import InvalidInput, PicoError
from shared.ids import SESSION, new_id
from shared.schedules import SHORTEST_INTERVAL_MS, Schedule, first_slot, parse
from shared.store.sql.arrivals import ORDER
from shared.untrusted import sender
from shared.values import Block, Role

MOST_FILES: Final = 100_000
LARGEST_FILE: Final = 1 << 30
"""Bytes of a file that is taken or read."""

STATUSES: Final = ("active", "paused", "completed")
CONTEXTS: Final = ("group", "isolated")

Row = dict[str, Any]


class Broken(PicoError):
    """A file of the home that can't be read as what it is; the sentence names it."""


@dataclass(slots=True)
class Arrivals:
    """Everything that moves in: rows of the store's tables, files by their names in the workspace, settings.

    ``changed`` and ``lost`` are sentences: what is different from now on, and what isn't there any more.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, Any] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def add(self, table: str, row: Row) -> None:
        """Let a row of a table move in."""
        self.rows.setdefault(table, []).append(row)

    def has_conversation(self, conversation_id: str) -> bool:
        """Return whether a conversation moves in."""
        return any(row["id"] == conversation_id for row in self.rows.get("conversations", ()))

    def add_conversation(self, conversation_id: str, messages: list[Row], born: int, active: int) -> None:
        """Let a conversation move in with its messages, in their order."""
        self.add(
            "conversations",
            {
                "id": conversation_id,
                "session_id": new_id(SESSION),
                "owner_id": conversation_id,
                "created_at": born,
                "last_activity": active,
                "message_count": len(messages),
                "next_seq": len(messages) + 1,
            },
        )
        for seq, message in enumerate(messages, start=1):
            self.add("messages", {"conversation_id": conversation_id, "seq": seq, **message})

    def add_task(self, row: Row, *, next_run: int | None, now: int) -> bool:
        """Let a task move in; one whose schedule can't be kept is lost, and said so."""
        name = f"task {row['id']} ({row['schedule_type']} {row['schedule_value']!r})"
        try:
            if row["status"] not in STATUSES or row["context_mode"] not in CONTEXTS:
                raise InvalidInput(
                    f"{row['status']!r} or {row['context_mode']!r} is none of {STATUSES + CONTEXTS}"
                )
            schedule = self._schedule(row, name)
        except InvalidInput as error:
            self.lost.append(f"{name}: {error}")
            return False
        if row["status"] == "active" and next_run is None:
            next_run = first_slot(schedule, now)
        row |= {
            "schedule_value": schedule.value,
            "next_run": next_run if row["status"] == "active" else None,
            "updated_at": row["created_at"],
            "catch_up": "once",
        }
        self.add("scheduled_tasks", row)
        return True

    def _schedule(self, row: Row, name: str) -> Schedule:
        value = str(row["schedule_value"]).strip()
        if row["schedule_type"] == "interval" and value.isdecimal() and int(value) < SHORTEST_INTERVAL_MS:
            self.changed.append(f"{name}: runs every {SHORTEST_INTERVAL_MS} ms, the shortest interval")
            value = str(SHORTEST_INTERVAL_MS)
        return parse(row["schedule_type"], value, row["timezone"])

    def add_files(self, folder: Path, *, below: str = "", leave: frozenset[str] = frozenset()) -> None:
        """Let the files of a folder move into the workspace, but those in ``leave`` (names at its top)."""
        for path in _files(folder):
            name = path.relative_to(folder)
            if name.parts[0] not in leave:
                self.add_file(path, str(Path(below, name)))

    def add_file(self, path: Path, name: str) -> None:
        """Let a file move into the workspace under a name."""
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            self.lost.append(f"{path} is no regular file")
        elif found.st_size > LARGEST_FILE:
            self.lost.append(f"{path} is larger than {LARGEST_FILE >> 20} MiB")
        else:
            self.files[name] = path


def message(
    message_id: str, role: Role, text: str, who: tuple[str, str], created_at: int, timezone: str
) -> Row:
    """Return a message's row but for its place in a conversation; ``who``: id and name of its sender."""
    identity, name = ("assistant", "assistant") if role == "assistant" else map(sender, who)
    blocks: list[Block] = [{"type": "text", "text": text}]
    if role == "user":
        blocks = person_message(text, sender=name, time=local(created_at, timezone), identity=identity)
    return {
        "id": message_id,
        "role": role,
        "sender": identity,
        "sender_name": name,
        "text": text,
        "blocks": jsons.dumps(blocks),
        "created_at": created_at,
    }


def derived_id(kind: str, *names: str) -> str:
    """Return an id that the same names always give, so that a second import knows what is there."""
    return f"{kind}-{uuid5(NAMESPACE_URL, jsons.dumps(names))}"


def instant(value: Any, where: str) -> int:
    """Return an instant of ISO 8601 in milliseconds, UTC where it names no offset; raises Broken."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise Broken(f"{where}: {str(value)[:60]!r} is not a time") from None
    return ms_of(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raises Broken."""
    try:
        return jsons.loads(read_text(path))
    except jsons.JSONDecodeError as error:
        raise Broken(f"{path}: not JSON ({error})") from None


def lines(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the objects of a file with one on each line, and where each stands; raises Broken."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            found = jsons.loads(line)
        except jsons.JSONDecodeError as error:
            raise Broken(f"{where}: not JSON ({error})") from None
        yield where, an_object(found, where)


@contextmanager
def record(where: str) -> Iterator[None]:
    """Turn what reading an odd record meets into Broken, which names it."""
    try:
        yield
    except Broken as error:
        raise error if where in str(error) else Broken(f"{where}: {error}") from None
    except (AttributeError, LookupError, OSError, OverflowError, TypeError, ValueError) as error:
        raise Broken(f"{where}: not of the known form ({str(error)[:100]})") from None


def an_object(value: Any, where: str) -> Row:
    """Return a JSON object; raises Broken for anything else."""
    if not isinstance(value, dict):
        raise Broken(f"{where}: an object was expected, not {str(value)[:40]!r}")
    return value


def read_text(path: Path, most: int = LARGEST_FILE) -> str:
    """Return the text of a file; raises Broken."""
    try:
        if path.stat().st_size > most:
            raise Broken(f"{path}: larger than {most >> 20} MiB")
        if not path.is_file():  # a pipe or a device may never end
            raise Broken(f"{path}: not a file")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Broken(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise Broken(f"{path}: {error.strerror}") from None


def _files(folder: Path) -> Iterator[Path]:
    count = 0
    for here, folders, names in os.walk(folder):
        folders.sort()
        links = [name for name in folders if Path(here, name).is_symlink()]
        for name in sorted([*names, *links]):
            count += 1
            if count > MOST_FILES:
                raise Broken(f"{folder}: more than {MOST_FILES:,} files")
            yield Path(here, name)


COLUMN: Final = re.compile(r"[a-z0-9_]{1,40}", re.ASCII)
TOKENS: Final = "tokens and pins of tools: make new tokens"
WEBHOOKS: Final = "webhooks and what they are told: make new webhooks"
KEPT_BACK: Final = {
    **dict.fromkeys(("tokens", "tool_pins", "mcp_sign_ins"), TOKENS),
    **dict.fromkeys(("webhooks", "webhook_events", "webhook_deliveries"), WEBHOOKS),
}
"""Tables whose digests or secrets an export doesn't have, and what to do for people who miss their rows."""


def read_export(path: Path) -> Arrivals:
    """Return the rows that ``picoclaw store export`` wrote; raises Broken, also where some are missing."""
    arrivals, kept_back = Arrivals(), Counter[str]()
    *rows, (_, end) = [*lines(path)] or [("", {})]
    if end != {"table": "end", "rows": len(rows)}:
        raise Broken(f"{path} doesn't end with the number of its rows: its export was cut off; export again")
    for where, row in rows:
        table = str(row.pop("table", None))
        if table in KEPT_BACK:
            kept_back[KEPT_BACK[table]] += 1
        elif table not in ORDER:
            raise Broken(f"{where}: {table[:40]!r} is no table that store export writes")
        else:
            arrivals.add(table, {_column(name, where): _column_value(value) for name, value in row.items()})
    for run in arrivals.rows.get("runs", ()):
        if run.get("state") == "running":
            run |= {"state": "error", "code": "interrupted", "finished_at": run.get("created_at")}
        # As in a backup that is put back: it may have gone on where it comes from.
        run |= {"ready_at": None, "again": None}
    for request in arrivals.rows.get("approvals", ()):
        if request.get("status") == "allowed" and request.get("ended_at") is None:
            request["status"] = "interrupted"
    arrivals.lost += [f"{number} {what}" for what, number in kept_back.items()]
    return arrivals


def _column(name: str, where: str) -> str:
    if not COLUMN.fullmatch(name):
        raise Broken(f"{where}: {name[:40]!r} is no name of a column")
    return name


def _column_value(value: Any) -> Any:
    return jsons.dumps(value) if isinstance(value, dict | list) else value
