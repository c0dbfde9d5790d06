"""Which tests run which statement, in whatever process: measured once for a commit.

The workers of the sandbox and the tool servers are started without an environment, forked, confined and
killed, which no tool for coverage follows. So each statement of a copy of the source marks itself in a file
that all processes have mapped; it is read after each test and cleared before.
"""

from __future__ import annotations

import ast
import hashlib
import json
import mmap
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROCESSES
from tests.mutants import stage
from tests.mutants.stage import ROOT

PACKAGES = ("host", "mcp_server", "shared")
BEGINNING = """
import sys as sys_
if not hasattr(sys_, "ran_"):
    import mmap as mmap_
    try:
        with open({path!r}, "r+b") as file_:
            sys_.ran_ = mmap_.mmap(file_.fileno(), 0)
    except OSError:
        sys_.ran_ = bytearray({size})
ran_ = sys_.ran_
"""
SIZE = 1 << 17


@dataclass(frozen=True)
class Test:
    name: str
    seconds: float
    quick: bool
    ran: frozenset[int]


@dataclass
class Statements:
    """The statements of the source by file and first line, and the number of each."""

    numbers: dict[tuple[str, int], int] = field(default_factory=dict)
    spans: dict[str, list[tuple[int, int, bool]]] = field(default_factory=dict)
    """First line, last line, whether it is in a function; outer ones first."""

    def at(self, path: str, line: int) -> list[int]:
        """Return the numbers of what runs at a line; of a module's or class's, those of all its functions."""
        inner = next((s for s in reversed(self.spans[path]) if s[0] <= line <= s[1]), None)
        if inner and inner[2]:
            return [self.numbers[path, inner[0]]]
        return [self.numbers[path, first] for first, _, inside in self.spans[path] if inside]


def read() -> Statements:
    statements = Statements()
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            _Counted(str(file.relative_to(ROOT)), statements).visit(ast.parse(file.read_text()))
    return statements


class _Counted(ast.NodeTransformer):
    """Puts before each statement one that counts it."""

    def __init__(self, path: str, statements: Statements) -> None:
        self._path = path
        self._statements = statements
        self._inside = False
        statements.spans[path] = []

    def generic_visit(self, node: ast.AST) -> ast.AST:
        outside = self._inside
        self._inside = outside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                setattr(node, name, self._counted(body))
        for child in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            self.visit(child)
        self._inside = outside
        return node

    def _counted(self, body: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for each in body:
            docstring = isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)
            future = isinstance(each, ast.ImportFrom) and each.module == "__future__"
            if not docstring and not future:
                found.append(ast.parse(f"ran_[{self._number(each)}] = 1").body[0])
            found.append(self.visit(each))
        return found

    def _number(self, node: ast.stmt) -> int:
        numbers = self._statements.numbers
        self._statements.spans[self._path].append((node.lineno, node.end_lineno or node.lineno, self._inside))
        return numbers.setdefault((self._path, node.lineno), len(numbers))


def measure(selected: list[str], kept: Path, at_once: int) -> None:
    """Write down what each test of these files runs, in a line of JSON; leave out files that are there."""
    done = _done(kept)
    files = [file for path in selected for file in _files(ROOT / path) if file not in done]
    if not files:
        return
    with tempfile.TemporaryDirectory(prefix="counted-", dir="/tmp") as directory:
        copies = Path(directory)
        copies.chmod(0o755)
        _count(copies)
        with multiprocessing.get_context("fork").Pool(at_once) as pool:
            for file, seconds in pool.imap_unordered(_measure, [(file, copies, kept) for file in files]):
                print(f"{file}: {seconds:.0f} s", flush=True)


def _files(path: Path) -> list[str]:
    found = path.rglob("test_*.py") if path.is_dir() else [path]
    names = (str(file.relative_to(ROOT)) for file in found)
    return sorted(name for name in names if "/." not in name)  # not those of packages in a .venvs


def _done(kept: Path) -> set[str]:
    """Return the files that were measured; begin anew if the source isn't what it was then."""
    source = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            source.update(file.read_bytes())
    lines = kept.read_text().splitlines() if kept.exists() else []
    if not lines or json.loads(lines[0]) != {"source": source.hexdigest()}:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.unlink(missing_ok=True)
        _append(kept, {"source": source.hexdigest()})
        return set()
    return {json.loads(line).get("file") for line in lines}


def _count(copies: Path) -> None:
    statements = Statements()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copies / package, ignore=shutil.ignore_patterns("__pycache__"))
        for file in sorted((ROOT / package).rglob("*.py")):
            path = str(file.relative_to(ROOT))
            tree = _Counted(path, statements).visit(ast.parse(file.read_text()))
            at = next((n for n, each in enumerate(tree.body) if _is_count(each)), len(tree.body))
            beginning = BEGINNING.format(path=str(copies / "ran"), size=SIZE)
            tree.body[at:at] = ast.parse(beginning).body
            (copies / path).write_text(ast.unparse(ast.fix_missing_locations(tree)))


def _is_count(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node).startswith("ran_[")


def _measure(work: tuple[str, Path, Path]) -> tuple[str, float]:
    file, copies, kept = work
    began = time.monotonic()
    ran = copies / f"ran-{os.getpid()}"
    ran.write_bytes(bytes(SIZE))
    ran.chmod(0o666)
    (copies / "ran").touch()
    shown = {Path(package): copies / package for package in PACKAGES} | {copies / "ran": ran}
    processes = any(f"{name}" in (ROOT / file).read_text() for name in PROCESSES)
    for quick in (True, False) if processes else (True,):
        options = ["--quick"] if quick else []
        ended = stage.run(shown, [*options, file], 600, [Recorder(file, kept, copies / "ran", quick)])
        if ended == "hung":
            print(f"{file}: cut off", flush=True)
    _append(kept, {"file": file})
    return file, time.monotonic() - began


class Recorder:
    """A plugin of pytest's that notes what a test ran, if it passed. After a quick run the others are run."""

    def __init__(self, file: str, kept: Path, ran: Path, quick: bool) -> None:
        self._file = file
        self._kept = kept
        self._path = ran
        self._quick = quick
        self._failed = False

    def pytest_sessionstart(self) -> None:
        with self._path.open("r+b") as file:
            self._ran = mmap.mmap(file.fileno(), 0)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if not self._quick:
            items[:] = [item for item in items if PROCESSES & set(getattr(item, "fixturenames", ()))]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._failed = False
        self._ran[:] = bytes(SIZE)
        began = time.monotonic()
        done = yield
        ran = [number for number, count in enumerate(self._ran[:]) if count]
        if not self._failed:
            self._note(item.nodeid, time.monotonic() - began, ran)
        return done

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._failed |= report.outcome != "passed"

    def _note(self, name: str, seconds: float, ran: list[int]) -> None:
        noted = {"file": "", "name": name, "seconds": round(seconds, 3), "quick": self._quick, "ran": ran}
        _append(self._kept, noted)


def _append(kept: Path, noted: dict[str, Any]) -> None:
    """Write a line at once, as others write as well."""
    output = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(output, json.dumps(noted, separators=(",", ":")).encode() + b"\n")
    os.close(output)


def load(kept: Path) -> list[Test]:
    noted = (json.loads(line) for line in kept.read_text().splitlines())
    return [
        Test(each["name"], each["seconds"], each["quick"], frozenset(each["ran"]))
        for each in noted
        if "name" in each
    ]
