"""Changes of the schema, written once for every engine: files of ``schema/``, by their numbers.

``36_colours.sql`` is for every engine, ``36_colours_sqlite.sql`` and ``36_colours_postgres.sql`` hold what
one of them has beside that: triggers, rights of the tool servers' role. A statement ends with a semicolon,
after which no line is indented; a line that begins with ``--`` is a comment. Statements are PostgreSQL's, but
for these words in angle brackets, which differ:

- ``<id>``: a text that is compared byte by byte; every column of a key has it
- ``<integer>``: a whole number of 64 bits, instants among them; flags are ``INTEGER``
- ``<bytes>``
- ``<now>``: the database's clock, in milliseconds
- ``<number>``: a row's own number, its primary key; ``<sequence>``: one that is never given out twice
- ``<random>``, ``<object>``: functions that make 32 random digits, and JSON of names and values
- ``<table>``, ``<by key>``: what ends a table, the second where rows lie in the order of their key

A trigger ``WHEN ... BEGIN ... END`` for both is written as SQLite has it; PostgreSQL makes a function of it.
One of that name goes before it.

A landed migration is never edited: a change is a new one. Sessions outlive an upgrade, so names stay.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from shared.errors import StoreVersion

SCHEMA: Final = Path(__file__).parent / "schema"
FILE: Final = re.compile(r"(\d+)_.+?(?:_(sqlite|postgres))?\.sql")
END: Final = re.compile(r";\n(?! )")
COMMENT: Final = re.compile(r"^--.*\n", re.MULTILINE)
WORD: Final = re.compile(r"<(\w+(?: \w+)?)>")
TRIGGER: Final = re.compile(
    r"CREATE TRIGGER (?P<name>\w+) (?P<event>.+? ON (?P<table>\w+)) WHEN (?P<condition>.+?) "
    r"BEGIN\n(?P<body>.+)END",
    re.DOTALL,
)
TRIGGERS: Final = {
    "sqlite": (
        "DROP TRIGGER IF EXISTS {name}",
        "CREATE TRIGGER {name} {event} WHEN {condition} BEGIN\n{body}END",
    ),
    "postgres": (
        "CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN\n"
        "{body}RETURN NULL; END $$",
        "DROP TRIGGER IF EXISTS {name} ON {table}",
        "CREATE TRIGGER {name} {event} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION {name}()",
    ),
}

FIRST: Final = {"sqlite": 1, "postgres": 8}
"""The numbers up to here are an engine's first version: PostgreSQL came later."""


def versions(engine: Literal["sqlite", "postgres"], words: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Return the statements of each of an engine's versions, oldest first; ``words``: what each word is."""
    found: dict[int, list[str]] = {}
    for path in sorted(SCHEMA.iterdir()):
        name = FILE.fullmatch(path.name)
        if name is not None and name[2] in (None, engine):
            number = max(int(name[1]), FIRST[engine])
            statements = _statements(path.read_text("utf-8"), words)
            made = statements if name[2] else _as_made(statements, engine)
            found.setdefault(number, []).extend(made)
    return tuple(map(tuple, found.values()))


def _statements(text: str, words: Mapping[str, str]) -> Iterator[str]:
    for piece in END.split(text):
        if statement := COMMENT.sub("", piece).strip():
            yield WORD.sub(lambda word: words[word[1]], statement).rstrip()


def _as_made(statements: Iterable[str], engine: str) -> Iterator[str]:
    """Yield what an engine makes of statements for both."""
    for statement in statements:
        if (trigger := TRIGGER.fullmatch(statement)) is None:
            yield statement
        else:
            yield from (each.format(**trigger.groupdict()) for each in TRIGGERS[engine])


def check_not_newer(version: int, known: int) -> None:
    """Raise StoreVersion for a database of a newer program."""
    if version > known:
        raise StoreVersion(
            f"The database has schema version {version}, this program knows {known}: "
            "start the newer program, or restore a backup made by this one."
        )
