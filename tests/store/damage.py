"""Volumes with three generations, and everything that may happen to one of their files."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
from hypothesis import strategies as st

from shared.errors import NotDurable, StoreError
from shared.store.volume import chain, layout, operator, volume
from shared.store.volume.carrier import Carrier
from tests.store.places import Places, add, names

CONVERSATIONS = 12
ALL = {f"c{number}" for number in range(CONVERSATIONS)}
KINDS = ("flip", "cut", "empty", "remove", "swap", "duplicate", "overwrite", "chown")
CALLS = (
    "os.open",
    "io.open",
    "os.pwrite",
    "os.fsync",
    "os.fdatasync",
    "os.replace",
    "os.unlink",
    "os.scandir",
)
ERRORS = (errno.ENOSPC, errno.EMFILE, errno.EACCES, errno.EIO)


@dataclass(frozen=True)
class Fault:
    """What happens to one file: ``first`` and ``second`` choose files, ``place`` where in the first."""

    kind: str
    first: int
    second: int
    place: float
    bit: int

    def happen(self, volume: Path) -> None:
        files = sorted(volume.iterdir())
        file, other = files[self.first % len(files)], files[self.second % len(files)]
        content = file.read_bytes()
        at = int(self.place * (len(content) - 1)) if content else 0
        if self.kind == "flip" and content:
            file.write_bytes(content[:at] + bytes([content[at] ^ 1 << self.bit]) + content[at + 1 :])
        elif self.kind == "cut":
            os.truncate(file, at)
        elif self.kind == "empty":
            os.truncate(file, 0)
        elif self.kind == "remove":
            file.unlink()
        elif self.kind == "swap":
            file.write_bytes(other.read_bytes())
            other.write_bytes(content)
        elif self.kind == "duplicate":
            file.with_name(_following(file.name)).write_bytes(content)
        elif self.kind == "overwrite":
            other.write_bytes(content)
        elif self.kind == "chown" and os.geteuid() == 0:
            os.chown(file, 12345, 12345)


faults = st.builds(
    Fault,
    kind=st.sampled_from(KINDS),
    first=st.integers(0, 30),
    second=st.integers(0, 30),
    place=st.floats(0, 1),
    bit=st.integers(0, 7),
)


@dataclass(frozen=True)
class Refusal:
    """One call of the operating system that fails, the ``number``-th of its kind."""

    call: str
    number: int
    error: int

    @contextmanager
    def happening(self) -> Iterator[None]:
        module, name = self.call.split(".")
        real: Callable[..., Any] = getattr(__import__(module), name)
        left = self.number

        def fail(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(self.error, os.strerror(self.error))
            return real(*arguments, **options)

        with mock.patch(self.call, fail):
            yield


refusals = st.builds(
    Refusal, call=st.sampled_from(CALLS), number=st.integers(1, 30), error=st.sampled_from(ERRORS)
)


def grow_generations(root: Path) -> Path:
    """Return a volume with three generations whose last host stopped in good order."""
    places = Places(root / "volume", root / "local")

    async def live(number: int) -> None:
        store = places.open()
        await add(store, f"c{number}")
        if number % 4 == 2:
            carrier = Carrier(places.database)
            volume.Compaction(carrier, threading.Event())._run(carrier.state())
            carrier.abandon()
        await store.close()

    with mock.patch.object(chain, "GENERATIONS", 9):
        for number in range(CONVERSATIONS):
            anyio.run(live, number)
    shutil.rmtree(places.local)
    assert len(places.listing().snapshots) >= 3
    return places.volume


@contextmanager
def _a_copy(volume: Path) -> Iterator[Places]:
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        root = Path(folder)
        shutil.copytree(volume, root / "volume")
        yield Places(root / "volume", root / "local")


def contents(volume: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in volume.iterdir() if path.name != layout.LOCK}


def found_by_a_start(places: Places) -> set[str] | None:
    """Start on the volume alone and return what is there; None when the start refuses with a sentence."""

    async def look() -> set[str]:
        async with places.host() as store:
            return await names(store)

    try:
        return anyio.run(look)
    except (StoreError, NotDurable):
        return None


def survives(volume: Path, fault: Fault) -> None:
    """Everything is there or the start refuses; what is called sound is whole; nothing is removed."""
    with _a_copy(volume) as places:
        fault.happen(places.volume)
        before = contents(places.volume)
        sound = _sound(places.volume)
        found = found_by_a_start(places)
        assert found in (ALL, None)
        assert found == ALL or not sound
        kept = contents(places.volume)
        # A name that was lost may be given anew; nothing else is written over.
        assert {name: kept.get(name) for name in before if name != "store.json"} == {
            name: content for name, content in before.items() if name != "store.json"
        }


def outlasts(volume: Path, refusal: Refusal) -> None:
    """A start that meets an error of the machine refuses, or works; the next one has everything."""
    with _a_copy(volume) as places:
        before = contents(places.volume)
        with refusal.happening():
            found = found_by_a_start(places)
        assert found in (ALL, None)
        kept = contents(places.volume)
        assert {name: kept[name] for name in before} == before
        assert found_by_a_start(places) == ALL
        assert operator.check(places.volume).faults == []


def _sound(volume: Path) -> bool:
    try:
        return operator.check(volume).faults == []
    except StoreError:
        return False


def _following(name: str) -> str:
    """Return a name as a later file of the same kind would have it, content and checksum as they are."""
    kind, era, rest = name.split("-", 2) if name.count("-") == 2 else (name, "", "")
    return f"{kind}-{int(era) + 5:06d}-{rest}" if era else f"{name}.copy"
