"""Names that are the host's own: nobody else goes by them, or by one that looks the same.

Names are compared by skeletons (Unicode Technical Standard 39, section 4): each character stands for the one
that it can be taken for. The table is that of the package confusable-homoglyphs, read when the first name
with other letters than ASCII comes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from string import ascii_uppercase
from typing import Final

from shared import jsons

HOSTS: Final = frozenset(
    {"assistant", "system", "host", "picoclaw", "tool", "tools", "developer", "model"}
    | {"scheduler", "heartbeat", "agent", "operator", "owner"}
)

# The table's rows for ASCII, and digits that are read as letters, which no standard lists.
_ASCII: Final = str.maketrans({"I": "l", "1": "l", "|": "l", "0": "O", "m": "rn"})
_DIGITS: Final = str.maketrans("345$", "eass")


def is_reserved(name: str, *more: str) -> bool:
    """Return whether a name is one of the host's, or of ``more``, or could be taken for one."""
    return not _skeletons(name).isdisjoint(_hosts(more))


@cache
def _hosts(more: tuple[str, ...]) -> frozenset[str]:
    return frozenset().union(*map(_skeletons, (*HOSTS, *filter(None, more))))


def _skeletons(name: str) -> frozenset[str]:
    """Return a name's skeletons, as it is written and in either case; spaces and signs count for nothing."""
    forms = (name, unicodedata.normalize("NFKC", name))
    cased = (each for form in forms for each in (form, form.casefold(), form.upper()))
    return frozenset(filter(None, map(_skeleton, cased)))


def _skeleton(name: str) -> str:
    if not name.isascii():
        name = unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).translate(_table()))
    letters = name.translate(_ASCII).translate(_DIGITS)
    return "".join(filter(str.isalnum, letters)).casefold()


@cache
def _table() -> Mapping[int, str]:
    return dict(_prototypes())


def _prototypes() -> Iterator[tuple[int, str]]:
    """Yield the characters that can be taken for an ASCII one, with that: of two, the one of more."""
    package = find_spec("confusable_homoglyphs")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("confusable_homoglyphs")
    found = jsons.loads(Path(package.origin).with_name("confusables.json").read_bytes())
    alike = {key: [each["c"].strip("\u200e") for each in others] for key, others in found.items()}
    for key, others in alike.items():
        char = key.strip("\u200e")
        prototype = max(others, key=lambda other: len(alike.get(other, ())))
        if len(char) == 1 and not char.isascii() and prototype.isascii() and len(alike[key]) <= 1:
            yield ord(char), prototype
    for letter in ascii_uppercase:
        # The standard takes small capitals for letters of their own; people read them as capitals.
        with suppress(KeyError):
            yield ord(unicodedata.lookup(f"LATIN LETTER SMALL CAPITAL {letter}")), letter.lower()
