"""What commands write: text for people, made safe for a terminal; how they end when something is wrong.

Then it is sentences on standard error, and a code of docs/cli.md.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from host.cli.start import HOPELESS
from shared import jsons
from shared.errors import InvalidInput, Misconfigured, PicoError, StoreDamaged, StoreError
from shared.secrets import SecretFault
from shared.settings import SettingsError
from shared.untrusted import CONTROLS, one_line

_REMOVED: Final = dict.fromkeys(CONTROLS.keys() - {9, 10})

UNCUT: Final = ("id", "status", "schedule", "next run", "started")
WIDE: Final = 200
MARKS: Final = {"ok": "[green]✓[/]", "note": "[yellow]•[/]", "fault": "[red]✗[/]"}
LONGEST_MS: Final = 999_999 * 86_400_000
UNITS_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}

# Without a terminal nothing limits a line but the reader, so tables there are not cut to 80 columns.
out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, highlight=False)


def named(path: Path) -> Path:
    """Return where a command writes a new file; `-` is no name, and standard output no file."""
    if str(path) == "-":
        raise typer.BadParameter("it has to be a new file, which standard output isn't: give a name")
    return path


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Give a name to write to, at which nobody has anything; it is at ``target`` afterwards, or nowhere."""
    part = target.with_name(f".picoclaw-{os.urandom(8).hex()}")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def safe(text: str) -> str:
    """Return a text of several lines without control characters; tabs and line ends stay."""
    return text.translate(_REMOVED)


def set_in(text: str) -> str:
    """Return the same with the lines below the first set in, so that none passes for a line of ours."""
    return safe(text).replace("\n", "\n  ")


def shown(text: str) -> str:
    """Return the text ready for rich: on one line, without control characters and without markup."""
    return escape(one_line(text))


def short(text: str, length: int) -> str:
    """Return the text on one line, cut to ``length`` characters."""
    line = one_line(" ".join(text.split()))
    return line if len(line) <= length else f"{line[: length - 1]}…"


def fail(sentence: str, code: int = 1) -> NoReturn:
    """Say what went wrong and end the program."""
    warn(sentence)
    raise SystemExit(code)


def warn(sentence: str) -> None:
    """Say what is wrong."""
    err.print(f"[red]picoclaw:[/] {shown(sentence)}", soft_wrap=True)


def print_json(value: Any) -> None:
    """Write a value as one line of JSON, which is UTF-8 wherever it goes (RFC 8259, section 8.1)."""
    sys.stdout.flush()
    sys.stdout.buffer.write(f"{one_line(jsons.dumps(value))}\n".encode(errors="replace"))


class Told(NamedTuple):
    """What came of a command: a value for programs, words for a person, and whether it went well."""

    value: Any
    words: str | Table
    ok: bool = True


def tell(value: Any, words: str | Table, *, json: bool) -> None:
    """Write what came of a command: the value as JSON, or the words for a person."""
    if json:
        print_json(value)
    else:
        out.print(words, soft_wrap=isinstance(words, str))


def judged(verdict: str, what: str, said: str) -> str:
    """Return the outcome of a check as a line: ok, note or fault."""
    return f"{MARKS[verdict]} {shown(what)}: {shown(said)}"


def milliseconds(span: str, option: str) -> int:
    """Return a span such as 90s or 2h; anything else ends the program."""
    number = span.rstrip("dhms")
    size = UNITS_MS.get(span[len(number) :], 0)
    value = int(number) * size if number.isascii() and number.isdigit() and len(number) < 16 else 0
    if not 0 < value <= LONGEST_MS:
        fail(f"{option} takes a number and a unit, such as 90s, 15m, 2h or 90d.", 2)
    return value


def local_time(instant: str | None) -> str:
    """Return an ISO instant in this machine's zone, or a dash."""
    if not instant:
        return "-"
    moment = datetime.fromisoformat(instant).astimezone()
    clock = "%H:%M:%S" if moment.second else "%H:%M"
    return f"{moment:%a %Y-%m-%d {clock} %Z}"


def table(*columns: str) -> Table:
    """Return an empty table in the one style of all commands; ids stay whole, to be copied."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, no_wrap=column in UNCUT, overflow="fold")
    return made


def listing(
    items: Sequence[Mapping[str, Any]], empty: str, columns: Mapping[str, str | Callable[[Any], str | Text]]
) -> Told:
    """Return a list with its table: each column has a field of the items, or what a function makes of one."""
    made = table(*columns)
    for item in items:
        cells = (item[cell] or "" if isinstance(cell, str) else cell(item) for cell in columns.values())
        made.add_row(*(cell if isinstance(cell, Text) else shown(str(cell)) for cell in cells))
    return Told(items, made if items else empty)


def took(run: Mapping[str, Any]) -> str:
    """Return how long a run took, or a dash while it goes on."""
    return "-" if run["duration_ms"] is None else f"{run['duration_ms'] / 1000:.1f}s"


FAILED: Final = 1
UNAUTHORIZED: Final = 401


class HostFault(Exception):
    """The host cannot be reached, or refused; the sentence is for people."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class Commands(TyperGroup):
    """All commands, none of which shows a stack trace for what a person can mend."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a fault ends the program."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever reads has enough: Typer ends without a word
        except EOFError:
            fail("Nothing was entered; nothing was changed.")
        except (SettingsError, SecretFault, HostFault, StoreError, PicoError, OSError) as error:
            *others, last = _sentences(error)
            for sentence in others:
                warn(sentence)
            fail(last, _code(error))


def _sentences(error: Exception) -> tuple[str, ...]:
    if isinstance(error, SettingsError):
        return error.faults
    if isinstance(error, OSError) and error.filename:
        return (f"{error.filename}: {error.strerror}",)
    return (str(error),)


def _code(error: Exception) -> int:
    match error:
        case HostFault():
            hopeless = error.status == UNAUTHORIZED
        case StoreError():
            hopeless = error.hopeless and not isinstance(error, StoreDamaged)
        case _:
            hopeless = isinstance(error, SettingsError | SecretFault | Misconfigured | InvalidInput)
    return HOPELESS if hopeless else FAILED
