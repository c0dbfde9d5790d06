"""A hostile or broken client on the pipes: refused in the words of JSON-RPC, and the server goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import psutil

from shared import jsons
from shared.store.store import Store
from tests.mcp.running import HELLO, RawServer, environment

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602

NOT_MESSAGES: list[tuple[bytes, int]] = [
    (b"hello\n", PARSE_ERROR),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping"\n', PARSE_ERROR),
    (b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}\n', PARSE_ERROR),
    (b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}\n', PARSE_ERROR),
    (b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}\n', PARSE_ERROR),
    (b"[" * 100_000 + b"\n", PARSE_ERROR),
    (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]\n', INVALID_REQUEST),
    (b'{"id":1,"method":"ping"}\n', INVALID_REQUEST),
    (b'{"jsonrpc":"1.0","id":1,"method":"ping"}\n', INVALID_REQUEST),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}\n', INVALID_REQUEST),
    (b'{"jsonrpc":"2.0","id":true,"method":"ping"}\n', INVALID_REQUEST),
    (b'{"jsonrpc":"2.0","id":1,"method":7}\n', INVALID_REQUEST),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}\n', INVALID_REQUEST),
    (b'"ping"\n', INVALID_REQUEST),
    (b"x" * (10 * 1024 * 1024) + b"\n", INVALID_REQUEST),
]


def tool_call(request_id: Any, name: str, **arguments: Any) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


async def test_a_line_that_is_no_message_is_refused_and_the_next_one_served(database: Path) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        for line, code in NOT_MESSAGES:
            await server.send(line)
            assert (await server.hear())["error"]["code"] == code, line[:60]
        await server.hello()
        for line, code in NOT_MESSAGES:
            await server.send(line)
            assert (await server.hear())["error"]["code"] == code, line[:60]
            assert (await server.ask("next", "ping", {}))["result"] == {}
        assert await server.end() == 0
        assert "Traceback" not in await server.complaint()


async def test_long_lines_cost_no_lasting_memory(database: Path) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        process = psutil.Process(server.process.pid)
        for _ in range(2):
            await server.send(b"x" * (10 * 1024 * 1024) + b"\n")
            await server.hear()
        before = process.memory_info().rss
        for _ in range(10):
            await server.send(b"x" * (10 * 1024 * 1024) + b"\n")
            assert (await server.hear())["error"]["message"] == "The line is longer than 4 MiB."
        assert process.memory_info().rss - before < 8 * 1024 * 1024


async def test_a_message_in_pieces_is_put_together_and_empty_lines_are_nothing(database: Path) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        for piece in (b"\n\r\n  \n", b'{"jsonrpc":"2.0",', b'"id":1,"method"', b':"ping"}\n'):
            await server.send(piece)
            await anyio.lowlevel.checkpoint()
        assert await server.hear() == {"jsonrpc": "2.0", "id": 1, "result": {}}


async def test_an_unfinished_line_at_the_end_is_nothing(database: Path, store: Store) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        await server.send(jsons.dump_bytes(tool_call(1, "send_message", text="half")))
        assert await server.end() == 0
    assert await store.outbound.said_by("conv-a", after=0) == []


UNKNOWN_METHODS = {
    "tools/destroy": METHOD_NOT_FOUND,
    "prompts/list": METHOD_NOT_FOUND,
    "logging/setLevel": INVALID_PARAMS,
    "sampling/createMessage": METHOD_NOT_FOUND,
    "": METHOD_NOT_FOUND,
    "__class__": METHOD_NOT_FOUND,
}


async def test_an_unknown_method_is_refused(database: Path) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        for method, code in UNKNOWN_METHODS.items():
            assert (await server.ask(1, method, {}))["error"]["code"] == code, method
        assert (await server.ask(2, "ping", {}))["result"] == {}


async def test_an_id_in_use_is_refused_and_its_first_request_answered_once(
    database: Path, store: Store
) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        lines = [tool_call(7, "send_message", text=text) for text in ("first", "second")]
        await server.send(b"".join(jsons.dump_bytes(line) + b"\n" for line in lines))
        answers = [await server.hear(), await server.hear()]
        # Once answered, the id is free again.
        assert (await server.tool("list_tasks", 7))["isError"] is False
        assert await server.end() == 0
    refused = [answer for answer in answers if "error" in answer]
    served = [answer for answer in answers if "result" in answer]
    assert (len(refused), len(served), served[0]["id"]) == (1, 1, 7)
    assert refused[0]["error"] == {"code": INVALID_REQUEST, "message": "The request id is in use."}
    assert [message.text for message in await store.outbound.said_by("conv-a", after=0)] == ["first"]


async def test_a_tool_call_before_the_handshake_is_refused(database: Path, store: Store) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.say(tool_call(1, "send_message", text="early"))
        assert (await server.hear())["error"]["code"] == INVALID_PARAMS
        await server.ask(2, "initialize", HELLO)
    assert await store.outbound.said_by("conv-a", after=0) == []


async def test_running_calls_are_finished_when_the_input_ends(database: Path, store: Store) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        calls = [tool_call(number, "send_message", text=str(number)) for number in range(200)]
        await server.send(b"".join(jsons.dump_bytes(call) + b"\n" for call in calls))
        assert server.process.stdin is not None
        await server.process.stdin.aclose()
        answers = [await server.hear() for _ in calls]
        assert await server.process.wait() == 0
    assert {answer["id"] for answer in answers} == set(range(200))
    assert not any(answer["result"]["isError"] for answer in answers)
    assert len(await store.outbound.said_by("conv-a", after=0)) == 200


async def test_a_cancelled_call_has_happened_wholly_or_not_at_all(database: Path, store: Store) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        for number in range(100):
            cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}}
            call = tool_call(number, "send_message", text=str(number))
            await server.send(jsons.dump_bytes(call) + b"\n" + jsons.dump_bytes(cancel) + b"\n")
        # It answers what wasn't cancelled in time, and keeps serving.
        await server.say({"jsonrpc": "2.0", "id": "last", "method": "ping"})
        answered: list[Any] = []
        while "last" not in answered:
            answered.append((await server.hear())["id"])
        assert await server.end() == 0
    said = {message.text for message in await store.outbound.said_by("conv-a", after=0)}
    assert {str(number) for number in answered if number != "last"} <= said


async def test_a_client_that_never_reads_does_not_keep_the_server_alive(database: Path) -> None:
    async with RawServer(environment(database, "conv-a")) as server:
        await server.hello()
        # Far more answers than a pipe holds; nobody reads them.
        await server.send(b'{"jsonrpc":"2.0","id":"x","method":"tools/list"}\n' * 50)
        assert server.process.stdin is not None
        assert server.process.stdout is not None
        await server.process.stdin.aclose()
        await server.process.stdout.aclose()
        with anyio.fail_after(60):
            assert await server.process.wait() == 0
        assert "Traceback" not in await server.complaint()
