"""Other people's MCP servers, whatever they list and answer, seen from outside: through a real host."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import example, given, settings

from tests.examples import examples
from tests.http.conftest import configure
from tests.mcp.odd_servers import EVIL, SAID, SLOW, OddServer, tool
from tests.mcp.other_servers import listening
from tests.mcp.test_any_server import ANSWER, TOOLS
from tests.running import HostProcess, ModelProcess, directive, new_host

pytestmark = pytest.mark.processes

MIB = 1024 * 1024
LONGEST_S = 3.0
"""What judges a pattern that backtracks on the event loop holds it for 13 s and more, on any machine."""


class Place:
    """A host, and a server that lists and answers what an example says."""

    def __init__(self, host: HostProcess, server: OddServer, url: str) -> None:
        self.host, self.server, self.url = host, server, url

    def turn(self, client: httpx2.Client, conversation: str | None) -> str:
        """Have the model call the server's tool, then say something plain."""
        asked = {
            "message": directive(
                steps=[{"tools": [{"name": "mcp__odd__a", "input": {"input": {"a": 1}}}]}, {"text": "done"}]
            ),
            "mcp_servers": {"odd": {"url": self.url, "timeout_ms": 20_000}},
        }
        answer = client.post(
            "/chat", json={**asked, **({"conversation_id": conversation} if conversation else {})}
        )
        assert answer.status_code == 200, answer.text
        conversation = str(answer.json()["conversation_id"])
        plain = client.post("/chat", json={"message": "hello", "conversation_id": conversation})
        assert plain.status_code == 200, plain.text
        assert plain.json()["status"] == "success", plain.text
        return conversation


@pytest.fixture(scope="module")
def place(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    host = new_host(tmp_path_factory.mktemp("odd"), model.url)
    configure(host, tools={"mcp": {"allowed_hosts": ["127.0.0.1"]}})
    server = OddServer([tool("a")])
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(listening(server.app())) as base,
    ):
        try:
            yield Place(host.start(), server, f"{base}/mcp")
        finally:
            host.stop()


@contextmanager
def looked_at(host: HostProcess) -> Iterator[list[float]]:
    """Ask for /health all the time; yield how long each answer took."""
    took: list[float] = []
    ended = threading.Event()

    def look() -> None:
        with host.client() as client:
            while not ended.is_set():
                begun = time.monotonic()
                client.get("/health")
                took.append(time.monotonic() - begun)
                ended.wait(0.01)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield took
    finally:
        ended.set()
        looker.join()


def test_whatever_a_server_lists_or_answers_the_conversation_goes_on_and_the_host_answers(
    place: Place,
) -> None:
    conversations: list[str] = []
    sizes: list[int] = []
    assert place.host.process is not None
    process = psutil.Process(place.host.process.pid)

    with place.host.client() as client, looked_at(place.host) as took:

        @settings(max_examples=examples(12), deadline=None, database=None)
        @example([tool("a", outputSchema=EVIL)], {**SAID, "structuredContent": {"a": "a" * 50_000 + "!"}})
        @example(
            [tool("a", outputSchema=SLOW)],
            {**SAID, "structuredContent": {"a": [{"b": n} for n in range(4_000)]}},
        )
        @example(
            [tool("a", EVIL)], {"content": [{"type": "image", "mimeType": "image/png", "data": "words"}]}
        )
        @example(
            [tool("a")], {"content": [{"type": "image", "mimeType": "image/png", "data": "A" * 5_000_000}]}
        )
        @example(
            [tool(f"t{n}", description="x" * 20_000) for n in range(250)],
            {"content": [{"type": "text", "text": "[" * 8_000_000}]},
        )
        @given(TOOLS, ANSWER)
        def whatever(tools: Any, answer: Any) -> None:
            place.server.tools = [*tools, tool("a")] if isinstance(tools, list) else tools
            place.server.answer = answer
            conversations[:] = [place.turn(client, conversations[0] if conversations else None)]
            sizes.append(process.memory_info().rss)

        whatever()
    assert max(took) < LONGEST_S
    assert sizes[-1] - sizes[0] < 64 * MIB


def test_a_pattern_of_the_guard_that_backtracks_holds_nobody_up(model: ModelProcess, tmp_path: Path) -> None:
    host = configure(
        new_host(tmp_path / "own", model.url), tools={"exec": {"custom_deny_patterns": ["(a+)+$"]}}
    )
    line = f"echo {'a' * 5_000}!"
    calls = [{"name": "exec", "input": {"command": each}} for each in (line, "echo hello there")]
    try:
        with host.start().client() as client, looked_at(host) as took:
            client.post("/chat", json={"message": "hello"}).raise_for_status()
            asked = {"message": directive(steps=[{"tools": calls}, {"text": "$results"}])}
            told = client.post("/chat", json=asked).json()
            said = told["result"]
        assert told["status"] == "success", told
        assert "the operator's patterns take too long for it" in said
        assert "hello there" in said
        assert max(took) < LONGEST_S
    finally:
        host.stop()


def test_a_server_that_a_request_has_twice_is_said(place: Place) -> None:
    place.server.tools, place.server.answer = [tool("a")], SAID
    entry = f'{{"url": "{place.url}"}}'
    body = f'{{"message": "hello", "mcp_servers": {{"odd": {entry}, "odd": {entry}, "ODD": {entry}}}}}'
    with place.host.client() as client:
        answer = client.post("/chat", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["warnings"][:2] == [
        "mcp_servers.odd stands more than once; the last one counts.",
        "The MCP servers ODD and odd differ in capitals only: both are used.",
    ]
