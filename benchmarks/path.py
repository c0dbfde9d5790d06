"""Path: the files and functions of the host that a message passes, and how often text is redacted on it.

A host is served in a process of its own against the fake model, and the functions that its threads call are
noted with ``sys.setprofile`` (https://docs.python.org/3/library/sys.html). Counted is what the third to the
thirtieth turn of a conversation have in common: what goes on beside a run now and then is in none of them.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from benchmarks.turns import HEADERS, REPLY
from tests.running import directive, new_host, running_model

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = (f"{ROOT}/host/", f"{ROOT}/shared/")
REDACTION: Final = f"{ROOT}/shared/redact.py"
TURNS: Final = 30
SEEN_FROM: Final = 3
EXEC: Final = {"tools": [{"name": "exec", "input": {"command": "true"}}]}
MESSAGES: Final = {"plain": REPLY, "with a command": directive(steps=[EXEC, {"text": "done"}])}

_INNER: Final = re.compile(r"\.<locals>\.<(genexpr|listcomp|dictcomp|setcomp)>")


@dataclass(slots=True)
class Passed:
    """What one turn passed: functions as (file, name), and how many calls were made in redaction."""

    functions: set[tuple[str, str]] = field(default_factory=set)
    redactions: int = 0

    @property
    def files(self) -> dict[str, list[str]]:
        """The functions by their files."""
        files: dict[str, list[str]] = {}
        for file, name in sorted(self.functions):
            files.setdefault(file, []).append(name)
        return files

    def note(self, frame: FrameType, event: str, argument: object) -> None:
        """Take in a call (``sys.setprofile`` calls it)."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGES):
            return
        self.functions.add((code.co_filename, _INNER.sub("", code.co_qualname)))
        self.redactions += code.co_filename == REDACTION


async def main() -> dict[str, float]:
    """Return the figures, and print the way of each message."""
    figures: dict[str, float] = {}
    for name, passed in (await asyncio.to_thread(measured)).items():
        print(f"\n{name}")
        for file, functions in passed.files.items():
            print(f"  {Path(file).relative_to(ROOT)}: {', '.join(functions)}")
        figures |= {
            f"{name}: files": len(passed.files),
            f"{name}: functions": len(passed.functions),
            f"{name}: redactions": passed.redactions,
        }
    return figures


def measured() -> dict[str, Passed]:
    """Return what each message passes in a host."""
    with tempfile.TemporaryDirectory() as root, running_model() as model:
        host = new_host(Path(root), model.url, {"LOG_LEVEL": "warning"})
        command = [sys.executable, "-m", "benchmarks.path"]
        done = subprocess.run(command, env=host.environment, cwd=ROOT, capture_output=True, check=True)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return {
        name: Passed(set(map(tuple, each["functions"])), each["redactions"]) for name, each in found.items()
    }


def _serve(environ: Mapping[str, str]) -> None:
    """Serve a host, talk to it, and print what was passed."""
    import anyio

    from host.cli.serve import listening, serve_on
    from host.runs import leases
    from shared.settings import load

    # On a busy machine it would go on beside every turn.
    vars(leases)["EVENTS_EVERY_S"] = 60.0

    settings = load({**environ, "PORT": "0"})
    bound = listening(settings)
    now = [Passed()]

    def note(frame: FrameType, event: str, argument: object) -> None:
        now[0].note(frame, event, argument)

    def talk() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", bound.getsockname()[1], timeout=60)
        found = {name: _common(connection, text, now) for name, text in MESSAGES.items()}
        _post(connection, "/control/stop", {})
        print(json.dumps(found))

    threading.setprofile(note)
    sys.setprofile(note)
    threading.Thread(target=talk).start()
    anyio.run(serve_on, bound, settings, backend_options={"use_uvloop": True})


def _common(connection: http.client.HTTPConnection, message: str, now: list[Passed]) -> dict[str, Any]:
    """Return what some turns of a conversation have in common."""
    conversation: dict[str, Any] = {}
    seen: list[Passed] = []
    for number in range(1, TURNS + 1):
        now[0] = Passed()
        answer = _post(connection, "/chat", {"message": message, **conversation})
        conversation = {"conversation_id": answer["conversation_id"]}
        if number >= SEEN_FROM:
            seen.append(now[0])
    functions = set.intersection(*(each.functions for each in seen))
    return {"functions": sorted(functions), "redactions": min(each.redactions for each in seen)}


def _post(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection.request("POST", path, json.dumps(body), HEADERS)
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    return answer


if __name__ == "__main__":
    _serve(os.environ)
