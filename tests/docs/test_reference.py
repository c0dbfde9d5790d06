"""The reference pages name everything that the program has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from host.agent.endings import Ending
from shared.errors import PicoError
from tests.docs.cli_page import page
from tests.docs.pages import ROOT, page_text


def test_the_page_of_the_command_line_is_what_the_commands_say() -> None:
    assert page() == page_text("cli.md"), "run python -m tests.docs.cli_page docs/cli.md"


def test_every_error_code_is_on_the_page_with_its_status() -> None:
    refused, ended = page_text("errors.md").split("## Codes of ended runs")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", refused, re.M))
    found = set(raised())
    assert found == {(code, rows.get(code)) for code, _ in found}
    endings = set(re.findall(r"^\| `(\w+)` \|", ended, re.M))
    assert endings >= {kind.code for kind in below(Ending)} | {"interrupted", "retryable"}
    assert {code for code in codes() if code not in rows} <= endings
    told = {*codes(), *(code for code, _ in found)}
    assert set(rows) - told == {"invalid_api_key", "insufficient_quota"}


def test_every_event_of_a_stream_is_on_the_page() -> None:
    table = page_text("http.md").partition("## Events")[2].partition("\n## ")[0]
    told = {
        name for row in re.findall(r"^\| (`.*?`) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)
    }
    # These two are written with the run's end.
    assert told == {*emitted(), "approval_request", "done"}


def below(kind: type[Any]) -> Iterator[type[Any]]:
    for each in kind.__subclasses__():
        if each.__module__.startswith(("host", "shared")):
            yield each
            yield from below(each)


def codes() -> set[str]:
    """Return what stands as ``code=`` or ``code =`` anywhere in the program."""
    found = set()
    for node in nodes():
        if isinstance(node, ast.Call | ast.ClassDef):
            found |= {text(each.value) for each in node.keywords if each.arg == "code"}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "code":
            found.add(text(node.value))
    return found - {""}


def raised() -> Iterator[tuple[str, str]]:
    """Yield the codes of refused requests with their status: of errors, of what is raised with a code of its
    own, and of what a connection answers itself.
    """
    statuses = {kind.__name__: str(kind.status) for kind in below(PicoError)} | {"PicoError": "500"}
    yield from ((kind.code, str(kind.status)) for kind in below(PicoError))
    for node in nodes():
        if isinstance(node, ast.Call) and (status := statuses.get(ast.unparse(node.func).split(".")[-1])):
            own = [text(each.value) for each in node.keywords if each.arg == "code"]
            yield from ((code, status) for code in own if code)
        elif isinstance(node, ast.Tuple | ast.Call):
            parts = node.elts if isinstance(node, ast.Tuple) else node.args
            match [ast.unparse(part) for part in parts[:2]]:
                case [status, code] if re.fullmatch(r"[45]\d\d '\w+'", f"{status} {code}"):
                    yield code.strip("'"), status


def emitted() -> set[str]:
    calls = [
        node for node in nodes() if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "emit"
    ]
    return {text(call.args[0]) for call in calls} - {""}


def nodes() -> Iterator[ast.AST]:
    for package in ("host", "shared", "mcp_server"):
        for file in (ROOT / package).rglob("*.py"):
            yield from ast.walk(ast.parse(file.read_text()))


def text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
