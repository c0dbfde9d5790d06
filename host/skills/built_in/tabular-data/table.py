"""Ask tables questions in SQL, with Python's standard library alone. See SKILL.md."""

import argparse
import csv
import json
import re
import sqlite3
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TextIO

ENCODINGS: Final = ("utf-8-sig", "cp1252", "latin-1")
NUMBER: Final = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
"""What counts as a number; 007 is a code and stays text."""

Row = list[Any]


class Fault(Exception):
    """A sentence for the caller."""


def text_of(path: Path) -> str:
    """Return a file's text in the first encoding that fits."""
    data = path.read_bytes()
    for encoding in ENCODINGS:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise Fault(f"{path}: not a text file")


def rows_of(path: Path) -> tuple[list[str], list[Row]]:
    """Return a file's columns and rows."""
    kind = path.suffix.lower()
    text = text_of(path)
    if kind == ".json":
        found = json.loads(text)
        return from_records(found if isinstance(found, list) else [found])
    if kind in (".jsonl", ".ndjson"):
        return from_records([json.loads(line) for line in text.splitlines() if line.strip()])
    return from_lines(text, "\t" if kind in (".tsv", ".tab") else None)


def from_records(records: list[Any]) -> tuple[list[str], list[Row]]:
    """Return the columns of all records, in the order in which they first appear."""
    if not all(isinstance(record, dict) for record in records):
        raise Fault("the JSON is not a list of objects")
    columns = list(dict.fromkeys(name for record in records for name in record))
    return columns, [[plain(record.get(name)) for name in columns] for record in records]


def plain(value: Any) -> Any:
    """Return a cell that SQLite can hold."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def from_lines(text: str, delimiter: str | None) -> tuple[list[str], list[Row]]:
    """Read delimited text; the first line names the columns."""
    delimiter = delimiter or sniffed(text)
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    header = next(reader, None)
    if header is None:
        raise Fault("the file is empty")
    columns = unique(header)
    rows = [[cell if cell.strip() else None for cell in row] for row in reader if any(row)]
    width = max([len(columns), *map(len, rows)])
    columns = unique([*columns, *("" for _ in range(width - len(columns)))])
    rows = [[*row, *[None] * (width - len(row))] for row in rows]
    kinds = [kind_of([row[at] for row in rows]) for at in range(width)]
    return columns, [[valued(c, kind) for c, kind in zip(row, kinds, strict=True)] for row in rows]


def sniffed(text: str) -> str:
    """Return the delimiter that splits the first line into most columns."""
    first = text.partition("\n")[0]
    return max((",", ";", "\t", "|"), key=first.count)


def unique(names: Iterable[str]) -> list[str]:
    """Name what has no name, and tell equal names apart, as SQLite does: without regard to case."""
    taken: set[str] = set()
    found = []
    for place, raw in enumerate(names, 1):
        base = name = raw.strip() or f"column_{place}"
        count = 1
        while name.lower() in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name.lower())
        found.append(name)
    return found


def kind_of(cells: Iterable[str | None]) -> type:
    """Return int, float or str: what all filled cells of a column are. Beyond 64 bits it is text."""
    filled = [cell.strip() for cell in cells if cell is not None]
    if not filled or not all(NUMBER.fullmatch(cell) for cell in filled):
        return str
    if all(cell.lstrip("+-").isdigit() for cell in filled):
        return int if all(len(cell) < 19 for cell in filled) else str
    return float


def valued(cell: str | None, kind: type) -> Any:
    """Return a cell as what its column is."""
    return cell if cell is None else kind(cell)


class Median:
    """The SQL aggregate median(x)."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def step(self, value: Any, /) -> None:
        """Take a value that is a number."""
        if isinstance(value, int | float):
            self.values.append(value)

    def finalize(self) -> Any:
        """Return the result."""
        return statistics.median(self.values) if self.values else None


class Deviation(Median):
    """The SQL aggregate stdev(x), of a sample."""

    def finalize(self) -> Any:
        """Return the result."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def table_name(path: Path, taken: Iterable[str]) -> str:
    """Return the name of a file's table."""
    name = re.sub(r"\W+", "_", path.stem).strip("_").lower() or "data"
    name = f"t{name}" if name[0].isdigit() else name
    return unique([*taken, name])[-1]


def loaded(files: list[str]) -> tuple[sqlite3.Connection, dict[str, str]]:
    """Return a database of the files and each file's table."""
    database = sqlite3.connect(":memory:")
    database.create_aggregate("median", 1, Median)
    database.create_aggregate("stdev", 1, Deviation)
    names: dict[str, str] = {}
    for file in files:
        columns, rows = rows_of(Path(file))
        name = names[file] = table_name(Path(file), names.values())
        quoted = ", ".join(quote(column) for column in columns)
        database.execute(f"create table {quote(name)} ({quoted})")
        marks = ", ".join("?" * len(columns))
        database.executemany(f"insert into {quote(name)} values ({marks})", rows)
    return database, names


def quote(name: str) -> str:
    """Return a name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def describe(files: list[str]) -> None:
    """Tell what is in the files."""
    database, names = loaded(files)
    for file, table in names.items():
        columns = [row[1] for row in database.execute(f"pragma table_info({quote(table)})")]
        [[count]] = database.execute(f"select count(*) from {quote(table)}")
        print(f"{file}: table {table}, {count} rows, {len(columns)} columns\n")
        found = [described(database, table, column, count) for column in columns]
        header = ["column", "type", "empty", "distinct", "smallest", "largest", "example"]
        write(sys.stdout, "md", header, found)


def described(database: sqlite3.Connection, table: str, column: str, count: int) -> Row:
    """Return what is known of one column."""
    name = quote(column)
    query = f"select count({name}), count(distinct {name}), min({name}), max({name}) from {quote(table)}"
    filled, distinct, least, most = database.execute(query).fetchone()
    kinds = f"select distinct typeof({name}) from {quote(table)} where {name} is not null"
    types = sorted(kind for (kind,) in database.execute(kinds))
    example = database.execute(f"select {name} from {quote(table)} where {name} is not null").fetchone()
    return [column, "/".join(types) or "empty", count - filled, distinct, least, most, (example or [None])[0]]


def query(sql: str, files: list[str], to: str | None, out: str | None, most: int) -> None:
    """Answer a question, on standard output or in a file."""
    database, _ = loaded(files)
    cursor = database.execute(sql)
    if cursor.description is None:
        raise Fault("the SQL has no answer; use select")
    columns = [column[0] for column in cursor.description]
    if out is None:
        rows = cursor.fetchmany(most + 1)
        write(sys.stdout, to or "md", columns, rows[:most])
        if len(rows) > most:
            print(f"[cut after {most} rows; --rows N shows more, --out FILE writes all]", file=sys.stderr)
        return
    rows = cursor.fetchall()
    with Path(out).open("w", encoding="utf-8", newline="") as file:
        write(file, to or Path(out).suffix.lstrip(".").lower(), columns, rows)
    print(f"{len(rows)} rows written to {out}")


def write(file: TextIO, form: str, columns: list[str], rows: Iterable[Any]) -> None:
    """Write rows in one of the forms."""
    objects = (dict(zip(columns, row, strict=True)) for row in rows)
    if form in ("csv", "tsv"):
        writer = csv.writer(file, delimiter="," if form == "csv" else "\t", lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    elif form == "json":
        json.dump(list(objects), file, ensure_ascii=False, indent=1)
        file.write("\n")
    elif form == "jsonl":
        file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)
    elif form == "md":
        file.writelines(f"{line}\n" for line in markdown(columns, rows))
    else:
        raise Fault(f"{form!r} is not one of csv, tsv, json, jsonl, md")


def markdown(columns: list[str], rows: Iterable[Any]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| " + " | ".join(cell(name) for name in columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell(value) for value in row) + " |"


def cell(value: Any) -> str:
    """Return a value for a Markdown table."""
    text = "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Do what the command line says; exit code 1 with a sentence if it can't be done."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    looking = commands.add_parser("describe", help="tell what is in the files")
    looking.add_argument("files", nargs="+")
    asking = commands.add_parser("query", help="answer a question in SQL")
    asking.add_argument("sql")
    asking.add_argument("files", nargs="+")
    asking.add_argument("--to", choices=["md", "csv", "tsv", "json", "jsonl"])
    asking.add_argument("--out", help="write all rows to this file")
    asking.add_argument("--rows", type=int, default=200, help="most rows to show")
    chosen = parser.parse_args()
    try:
        if chosen.command == "describe":
            describe(chosen.files)
        else:
            query(chosen.sql, chosen.files, chosen.to, chosen.out, chosen.rows)
    except (Fault, OSError, sqlite3.Error, json.JSONDecodeError, csv.Error) as error:
        sys.exit(f"table.py: {error}")


if __name__ == "__main__":
    main()
