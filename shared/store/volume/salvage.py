"""Taking out of a damaged volume, or a damaged database, what can still be read.

Several states are built in a directory of their own: from each snapshot, with every frame behind it that is
whole, and with the frames before the first damage alone. Conversations that are whole in one of them are
taken first; of the others, each row that can be read. Nothing is ever written to the source.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shared.errors import StoreDamaged, StoreError
from shared.store.sqlite.content import is_damage, tables, value_of
from shared.store.sqlite.engine import connect
from shared.store.sqlite.store import migrate
from shared.store.volume import layout, snapshot, wal
from shared.store.volume.layout import FileId, Snapshot

LAST_ROWID: Final = 1 << 40
MOST_FAILURES: Final = 20_000
"""So many rows of a table may be unreadable until the rest of it is given up."""
OWN_TABLES: Final = frozenset({"schema_migrations", "counters"})

Counts = dict[str, tuple[int, int]]
"""For each conversation how many messages it had, and how many can be read."""


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What was taken; ``lost`` names each conversation that isn't whole, a sentence each."""

    whole: int
    known: int
    lost: list[str]

    @property
    def sentence(self) -> str:
        """Return the outcome in a sentence."""
        return f"{self.whole} of {self.known} conversations can be salvaged whole"


def salvage(source: Path, target: Path, folder: Path) -> Salvaged:
    """Make a new database at ``target`` of what can be read; raises StoreError when that is nothing.

    ``folder`` is an empty directory for the states. ``source``: a volume, or a database file.
    """
    with closing(connect(target, busy_ms=0)) as out:
        migrate(out)
        out.execute("PRAGMA foreign_keys=OFF")
        states = list(_states(source, folder))
        known: Counter[str] = Counter()
        found = [_counts(state) for state in states]
        for counts in found:
            for name, (messages, _) in counts.items():
                known[name] = max(known[name], messages)
        taken: set[str] = set()
        for state, counts in zip(states, found, strict=True):
            whole = {name for name, (_, read) in counts.items() if read >= known[name]} - taken
            _take(state, out, whole)
            taken |= whole
        for state in states if known.keys() - taken else ():
            _take(state, out, known.keys() - taken)
        _tie_up(out)
        lost = [_loss(out, name, known[name]) for name in sorted(known.keys() - taken)]
        out.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if not known:
        raise StoreError(f"{source} has no conversation that can be read: only a backup has them")
    return Salvaged(len(taken), len(known), lost)


def _states(source: Path, folder: Path) -> Iterator[Path]:
    """Build the states worth reading, the best first; one that is wholly sound is the last."""
    number = 0
    if source.is_file():
        state = folder / "state.db"
        snapshot.copy_with_log(source, state)
        yield _made_readable(state)
        return
    listing = layout.scan(source)
    bases: list[Snapshot | None] = [*reversed(listing.snapshots), None]
    for base in bases:
        for lenient in (True, False):
            number += 1
            state = folder / f"state-{number}.db"
            sound = _build(source, base, state, lenient=lenient)
            if state.exists() and state.stat().st_size:
                yield _made_readable(state)
            if sound:
                break
        if sound and base is not None:
            return


def _build(store_dir: Path, base: Snapshot | None, state: Path, *, lenient: bool) -> bool:
    """Put a snapshot and the segments behind it together; returns whether all of it was sound."""
    if base is None:
        state.touch()
    sound = base is None or snapshot.fits(base, snapshot.copy(base.path, state))
    names = [name for name in layout.scan(store_dir).segments if base is None or name >= base.id]
    lengths = {each.id: each.length for each in _links(store_dir, names)}
    sound = sound and lengths.keys() <= {*names, *([base.id] if base else [])}
    for name in names:
        path = layout.segment_path(store_dir, name)
        whole = _apply(path, state, lengths.get(name), lenient=lenient)
        sound = sound and whole
        if not whole and not lenient:
            break
    return sound


def _links(store_dir: Path, names: list[FileId]) -> Iterator[layout.Link]:
    for name in names:
        with suppress(StoreDamaged):
            found = layout.read_segment(store_dir, name)
            if found is not None and found.previous is not None:
                yield found.previous


def _apply(path: Path, state: Path, length: int | None, *, lenient: bool) -> bool:
    """Write the pages of a segment's whole transactions; returns whether nothing of it was damaged."""
    with path.open("rb") as log, state.open("r+b") as pages:
        page_size = int.from_bytes(pages.read(18)[16:18], "big") or None
        log.seek(layout.HEAD)
        waiting: list[wal.Frame] = []
        end, sound = 0, True
        for frame in wal.frames(log, 65536 if page_size == 1 else page_size):
            if length is not None and frame.offset >= length:
                break
            sound = sound and frame.sound
            if not sound and not lenient:
                return False
            if not frame.sound:
                continue
            end = frame.offset + wal.FRAME.size + len(frame.data)
            waiting.append(frame)
            if frame.commits:
                for each in waiting:
                    pages.seek((each.page - 1) * len(each.data))
                    pages.write(each.data)
                pages.truncate(frame.commits * len(frame.data))
                waiting = []
    return sound and (length is None or end >= length)


def _made_readable(state: Path) -> Path:
    """Mend the first bytes, without which SQLite doesn't open a file at all (fileformat2.html, 1.3)."""
    with state.open("r+b") as file:
        page_size = int.from_bytes(file.read(18)[16:18], "big")
        file.seek(0)
        file.write(snapshot.MAGIC if page_size.bit_count() == 1 else snapshot.MAGIC + b"\x10\0")
    return state


def _counts(state: Path) -> Counts:
    """Return which conversations a state knows, and how much of each can be read."""
    with closing(_reader(state)) as connection:
        had = {
            str(row["id"]): row["next_seq"] - 1
            for row in _rows(connection, "conversations")
            if isinstance(row["next_seq"], int)
        }
        read = Counter(str(row["conversation_id"]) for row in _rows(connection, "messages"))
    # A conversation whose own row is lost had at least one message more than nothing.
    return {name: (had.get(name, read[name] + 1), read[name]) for name in had.keys() | read.keys()}


def _take(state: Path, out: sqlite3.Connection, wanted: set[str]) -> None:
    """Copy what belongs to the conversations, and the rows of none."""
    with closing(_reader(state)) as connection:
        out.execute("BEGIN")
        for table in tables(out):
            if table in OWN_TABLES:
                continue
            key = "id" if table == "conversations" else "conversation_id"
            columns = {row["name"] for row in out.execute(f"PRAGMA table_info({table})")}
            for row in _rows(connection, table):
                if row.get(key) is None or row[key] in wanted:
                    _put(out, table, {name: value for name, value in row.items() if name in columns})
        out.execute("COMMIT")


def _put(out: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    # A row that a damage turned into nonsense is as lost as one that can't be read.
    with suppress(sqlite3.IntegrityError):
        marks = ", ".join("?" * len(row))
        out.execute(f"INSERT OR IGNORE INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))


def _tie_up(out: sqlite3.Connection) -> None:
    """Give messages without a conversation one again, and drop other rows that point to nothing."""
    statement = """INSERT INTO conversations
            (id, session_id, owner_id, created_at, last_activity, message_count, next_seq)
        SELECT conversation_id, 'salvaged-' || conversation_id, conversation_id, min(created_at),
            max(created_at), count(text), max(seq) + 1 FROM messages
        WHERE conversation_id NOT IN (SELECT id FROM conversations) GROUP BY conversation_id"""
    out.execute(statement)
    for table in tables(out):
        for key in out.execute(f"PRAGMA foreign_key_list({table})").fetchall():
            out.execute(
                f"DELETE FROM {table} WHERE {key['from']} NOT IN (SELECT {key['to']} FROM {key['table']})"
            )


def _loss(out: sqlite3.Connection, name: str, had: int) -> str:
    read = int(out.execute("SELECT count(*) FROM messages WHERE conversation_id = ?", (name,)).fetchone()[0])
    return f"conversation {name}: {read} of at least {had} messages can be read"


def _reader(state: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(state, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA writable_schema=ON")  # a damaged row of the schema doesn't hide the others
    return connection


def _rows(connection: sqlite3.Connection, table: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table that can be read, around those that can't."""
    found = list(_read(connection, "SELECT wr FROM pragma_table_list WHERE name = ?", table))
    if not found or found[0] is None:
        return
    if found[0]["wr"]:
        # By its key from both ends: what lies between two damages is lost. Some rows may come twice.
        for order in ("", "ORDER BY 1 DESC, 2 DESC"):
            yield from filter(None, _read(connection, f"SELECT * FROM {table} {order}"))
        return
    waiting, failures = [(0, LAST_ROWID)], 0
    while waiting and failures < MOST_FAILURES:
        low, high = waiting.pop()
        statement = f"SELECT rowid AS _at, * FROM {table} WHERE rowid BETWEEN ? AND ? ORDER BY rowid"
        for row in _read(connection, statement, low, high):
            if row is not None:
                low = row.pop("_at") + 1
                if _makes_sense(row):
                    yield row
                continue
            failures += 1
            if low < high:
                middle = (low + high) // 2
                waiting += [(middle + 1, high), (low, middle)]


def _read(
    connection: sqlite3.Connection, statement: str, *values: int | str
) -> Iterator[dict[str, Any] | None]:
    """Yield rows, and None where no more can be read because of a damage."""
    try:
        yield from map(dict, connection.execute(statement, values))
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        yield None


def _makes_sense(row: dict[str, Any]) -> bool:
    try:
        for name, value in row.items():
            value_of(name, value)
    except ValueError:
        return False
    return True
