"""Other agents ask the host's: over HTTP and beside it, plainly, as a task, and back and forth."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx2
import mcp_types as types
import pytest
from mcp import StdioServerParameters
from mcp.client import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ElicitResult, Result
from pydantic import ConfigDict

from shared.ask_contract import ASK_TOOLS, DEPTH, TASKS, ask_declarations
from tests.http.conftest import configure
from tests.mcp.over_http import STATELESS, RawHttp, envelope, new_token, official_client, request
from tests.mcp.running import COMMAND, RawServer, environment
from tests.mcp.running import official_client as stdio_client
from tests.running import (
    TOKEN,
    HostProcess,
    ModelProcess,
    directive,
    free_port,
    new_host,
    running_host,
    running_model,
    until,
)

QUESTION: dict[str, Any] = {
    "name": "ask_person",
    "input": {"question": "Which city?", "options": ["Rome", "Oslo"]},
}
ASKS_BACK = directive(steps=[{"tools": [QUESTION]}, {"text": "It is $results"}])
HANGS = directive(hang=True)


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    with running_model() as process:
        yield process


@pytest.fixture(scope="module")
def host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(tmp_path_factory.mktemp("host"), model.url) as process:
        yield process


def database(host: HostProcess) -> Path:
    return Path(host.environment["LOCAL_DB_PATH"])


@asynccontextmanager
async def asking(host: HostProcess, over: str, name: str) -> AsyncIterator[Client]:
    opened = (
        stdio_client(database(host), name)
        if over == "stdio"
        else official_client(host, new_token(host, name)["token"], "legacy" if over == "legacy" else "auto")
    )
    async with opened as client:
        yield client


def told(result: CallToolResult) -> dict[str, Any]:
    found: dict[str, Any] = result.structured_content
    assert found is not None, result.content
    return found


def sentence(result: CallToolResult) -> str:
    (block,) = result.content
    assert result.is_error
    assert isinstance(block, types.TextContent)
    return block.text


@pytest.mark.parametrize("over", ["legacy", "http", "stdio"])
async def test_an_agent_asks_and_has_the_answer(host: HostProcess, over: str) -> None:
    async with asking(host, over, f"asks-{over}") as client:
        assert [tool.name for tool in (await client.list_tools()).tools][-3:] == list(ask_declarations())
        first = told(await client.call_tool("ask", {"message": directive(text="here you are")}))
        assert (first["status"], first["result"]) == ("success", "here you are")
        shape = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        typed = {
            "message": directive(steps=[{"tools": [{"name": "final_answer", "input": {"n": 7}}]}]),
            "output_schema": shape,
        }
        assert told(await client.call_tool("ask", typed))["output"] == {"n": 7}
        wrong = await client.call_tool("ask", {"message": "hi", "output_schema": {"type": 7}})
        assert "output_schema" in sentence(wrong)
        more = {"message": "and then?", "conversation_id": first["conversation_id"]}
        second = told(await client.call_tool("ask", more))
        assert second["conversation_id"] == first["conversation_id"]
        assert second["run_id"] != first["run_id"]
        assert told(await client.call_tool("get_run", {"run_id": first["run_id"]})) == first
        assert "ended already" in sentence(await client.call_tool("cancel_run", {"run_id": first["run_id"]}))
        assert "message" in sentence(await client.call_tool("ask", {"message": " "}))
        assert "depth" in sentence(await client.call_tool("ask", {"message": "hi", "depth": 0}))


async def test_each_reaches_its_own_conversation_and_those_it_began(host: HostProcess) -> None:
    async with AsyncExitStack() as stack:
        mine, yours = [
            await stack.enter_async_context(asking(host, "http", name)) for name in ("mine", "yours")
        ]
        main = await stack.enter_async_context(official_client(host, TOKEN))
        asked = told(await mine.call_tool("ask", {"message": "hello"}))
        own = told(await mine.call_tool("ask", {"message": "hello", "conversation_id": "mine"}))
        assert own["conversation_id"] == "mine"
        for run_id in (asked["run_id"], own["run_id"], "run-of-nobody"):
            for tool in ("get_run", "cancel_run"):
                refused = await yours.call_tool(tool, {"run_id": run_id})
                assert sentence(refused) == "Run not found or access denied."
        for conversation_id in (asked["conversation_id"], "mine", "main", "conv-of-nobody"):
            refused = await yours.call_tool("ask", {"message": "x", "conversation_id": conversation_id})
            assert sentence(refused) == "Conversation not found or access denied."
        assert told(await main.call_tool("get_run", {"run_id": asked["run_id"]}))["status"] == "success"
    with host.client() as client:
        seen = client.get(f"/chat/{asked['conversation_id']}/messages").json()["messages"][0]
        assert seen["sender"] == "another agent"


async def test_a_conversation_that_works_is_an_error_result_and_its_run_can_be_seen_and_stopped(
    host: HostProcess,
) -> None:
    with host.client() as client:
        begun = client.post(
            "/chat", json={"message": HANGS, "background": True, "conversation_id": "main"}
        ).json()
    async with official_client(host, TOKEN) as main:
        busy = await main.call_tool("ask", {"message": "hi", "conversation_id": "main"})
        assert "currently processing" in sentence(busy)
        seen = told(await main.call_tool("get_run", {"run_id": begun["run_id"]}))
        assert (seen["status"], seen["steps"], seen["last_tool"]) == ("running", 0, None)
        stopped = told(await main.call_tool("cancel_run", {"run_id": begun["run_id"]}))
        assert stopped["status"] == "cancelling"
        with anyio.fail_after(60):
            while told(await main.call_tool("get_run", {"run_id": begun["run_id"]}))["status"] == "running":
                await anyio.sleep(0.02)
        ended = await main.call_tool("get_run", {"run_id": begun["run_id"]})
        assert (ended.is_error, told(ended)["status"]) == (True, "cancelled")


def test_the_tools_take_the_scope_chat_and_are_not_for_the_hosts_own_runs(
    host: HostProcess, model: ModelProcess
) -> None:
    token = new_token(host, "of-before", scopes=["mcp", "tasks"])["token"]
    with RawHttp(host, token) as client:
        client.hello()
        names = [tool["name"] for tool in client.ask(1, "tools/list")["result"]["tools"]]
        assert set(names).isdisjoint(ASK_TOOLS)
        call = {"name": "ask", "arguments": {"message": "hi"}}
        assert client.say(request(2, "tools/call", call)).status_code == 403
        discovered = client.stateless("server/discover").json()["result"]["capabilities"]
        assert TASKS not in discovered.get("extensions", {})
        assert client.stateless("tasks/get", {"taskId": "x"}, mcp_name="x").status_code == 403
    with host.client() as client:
        client.post("/chat", json={"message": "what can you do?"})
    offered = {tool["name"] for tool in model.requests()[-1]["body"]["tools"]}
    assert "mcp__picoclaw__send_message" in offered
    assert offered.isdisjoint(f"mcp__picoclaw__{name}" for name in ASK_TOOLS)


async def test_without_a_host_an_agent_is_told_that_none_is_running(tmp_path: Path) -> None:
    async with stdio_client(tmp_path / "picoclaw.db", "alone") as client:
        assert "No host is running" in sentence(await client.call_tool("ask", {"message": "hi"}))


@pytest.mark.parametrize("over", ["http", "stdio"])
async def test_a_question_goes_to_a_client_that_can_ask_its_person(host: HostProcess, over: str) -> None:
    heard: list[types.ElicitRequestFormParams] = []

    async def elicited(_: object, params: types.ElicitRequestParams) -> ElicitResult:
        assert isinstance(params, types.ElicitRequestFormParams)
        heard.append(params)
        return ElicitResult(action="accept", content={"answer": "Oslo"})

    async with opened(host, over, f"asked-back-{over}", elicitation_callback=elicited) as client:
        answer = told(await client.call_tool("ask", {"message": ASKS_BACK}))
    assert answer["status"] == "success"
    assert "Oslo" in answer["result"]
    (asked,) = heard
    assert asked.message == "Which city?"
    assert asked.requested_schema["properties"]["answer"]["enum"] == ["Rome", "Oslo"]


async def test_a_client_that_cannot_ask_hears_where_a_person_answers(host: HostProcess) -> None:
    async with asking(host, "legacy", "cannot-ask") as client:
        paused = await client.call_tool("ask", {"message": ASKS_BACK})
        assert not paused.is_error
        assert told(paused)["status"] == "paused"
        assert "POST /approvals/" in told(paused)["error"]
        (question,) = told(paused)["requests"]
        with host.client() as person:
            answer = {"decision": "answer", "message": "Rome", "input_sha256": question["input_sha256"]}
            assert person.post(f"/approvals/{question['id']}", json=answer).status_code == 200
        run = {"run_id": told(paused)["run_id"]}
        until_ended = told(await client.call_tool("get_run", run))
        with anyio.fail_after(60):
            while until_ended["status"] != "success":
                await anyio.sleep(0.02)
                until_ended = told(await client.call_tool("get_run", run))
        assert "Rome" in until_ended["result"]


GATED = {"name": "append_file", "input": {"path": "gated.txt", "content": "x\n"}}
GATED_TWICE = directive(steps=[{"tools": [GATED, QUESTION]}, {"tools": [GATED]}, {"text": "$results"}])


def gated(model: ModelProcess, root: Path, **more: Any) -> HostProcess:
    rules = [{"tool": "append_file", "do": "ask"}]
    return configure(new_host(root, model.url), permissions=rules, **more).start()


def waits_for(client: RawHttp, *, message: str = GATED_TWICE, **meta: Any) -> dict[str, Any]:
    """Ask as a client that can ask its person; return the result."""
    able = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}, **meta}
    call = {"name": "ask", "arguments": {"message": message}, "_meta": {**envelope(), **able}}
    result: dict[str, Any] = client.stateless("tools/call", call).json()["result"]
    return result


def test_people_allow_and_deny_calls_through_a_client_whose_token_may_approve(
    model: ModelProcess, tmp_path: Path
) -> None:
    host = gated(model, tmp_path)
    token = new_token(host, "approves", scopes=["mcp", "chat", "approve"])["token"]
    with RawHttp(host, token) as client, host.client() as operator:
        first = waits_for(client)
        asked = {each["params"]["message"]: key for key, each in first["inputRequests"].items()}
        (call,) = [message for message in asked if "append_file" in message]
        assert (call.startswith("May the agent do this?"), r'"content": "x\n"' in call) == (True, True)
        form = first["inputRequests"][asked[call]]["params"]["requestedSchema"]
        assert (form["required"], form["properties"]["decision"]["enum"]) == (["decision"], ["allow", "deny"])
        again = {"name": "ask", "arguments": {"message": GATED_TWICE}, "requestState": first["requestState"]}
        again["_meta"] = {**envelope(), "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}}
        said = {
            asked[call]: {"action": "accept", "content": {"decision": "allow"}},
            asked["Which city?"]: {"action": "accept", "content": {"answer": "Rome"}},
        }
        closed = {key: {"action": "cancel"} for key in said}
        dismissed = client.stateless("tools/call", {**again, "inputResponses": closed}).json()["result"]
        assert dismissed["structuredContent"]["status"] == "paused", "nobody chose, and nobody is asked twice"
        waiting = operator.get("/approvals?status=pending").json()["approvals"]
        assert {each["id"] for each in waiting} == set(said)
        second = client.stateless("tools/call", {**again, "inputResponses": said}).json()["result"]
        ((key, _),) = second["inputRequests"].items()
        denied = {key: {"action": "accept", "content": {"decision": "deny", "message": "once is enough"}}}
        ended = client.stateless("tools/call", {**again, "inputResponses": denied}).json()["result"]
        assert ended["structuredContent"]["status"] == "success"
        assert "once is enough" in ended["structuredContent"]["result"]
        decided = operator.get("/approvals?kind=approval").json()["approvals"]
        assert [(each["status"], each["decided_by"]["door"]) for each in decided] == [
            ("denied", "mcp"),
            ("done", "mcp"),
        ]
        assert all(each["decided_by"]["token_id"] for each in decided)
        who = {(each["decided_by"]["name"], each["decided_by"]["address"]) for each in decided}
        assert who == {("operator", "127.0.0.1")}
    host.kill()


@pytest.mark.parametrize("approvals", [False, True])
def test_no_call_is_allowed_through_what_has_no_person_who_may(
    model: ModelProcess, tmp_path: Path, *, approvals: bool
) -> None:
    host = gated(model, tmp_path, mcp={"approvals": approvals})
    call = directive(steps=[{"tools": [GATED]}, {"text": "done"}])
    for token, meta, shown in (
        (TOKEN, {}, approvals),
        (TOKEN, {DEPTH: 1}, False),
        (new_token(host, "plain")["token"], {}, False),
        (new_token(host, "approves", scopes=["mcp", "chat", "approve"])["token"], {DEPTH: 2}, False),
    ):
        with RawHttp(host, token) as client:
            asked = waits_for(client, message=call, **meta)
            assert ("inputRequests" in asked) is shown
            view = asked if shown else asked["structuredContent"]
            assert shown or (view["status"], "POST /approvals/" in view["error"]) == ("paused", True)
            run_id = asked["requestState"] if shown else view["run_id"]
            with host.client() as operator:
                (waiting,) = operator.get(f"/approvals?run_id={run_id}").json()["approvals"]
            yes = {waiting["id"]: {"action": "accept", "content": {"decision": "allow"}}}
            able = {**with_tasks(elicitation={}), "inputResponses": yes, "taskId": run_id}
            able["_meta"] |= meta
            assert client.stateless("tasks/update", able, mcp_name=run_id).status_code == 200
            with host.client() as operator:
                status = operator.get(f"/approvals/{waiting['id']}").json()["status"]
            assert (status == "pending") is not shown
    host.kill()


class Task(Result):
    """What is returned in place of a result that takes longer."""

    model_config = ConfigDict(extra="allow")
    result_type: Literal["task"] = "task"


class Polling(ClientExtension):
    """A client that speaks the Tasks extension: it keeps the id, and returns what it was told."""

    identifier = TASKS

    def __init__(self) -> None:
        self.task: dict[str, Any] = {}

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Task, resolve=self.resolve)]

    async def resolve(self, claimed: Task, _: ClaimContext) -> CallToolResult:
        self.task = claimed.model_dump(by_alias=True)
        view = {"status": "running", "run_id": self.task["taskId"], "conversation_id": ""}
        return CallToolResult(content=[], structured_content=view)


@asynccontextmanager
async def opened(host: HostProcess, over: str, name: str, **wanted: Any) -> AsyncIterator[Client]:
    """Yield the SDK's client of the newest era with what it can do."""
    async with AsyncExitStack() as stack:
        if over == "stdio":
            parameters = StdioServerParameters(
                command=COMMAND[0], args=COMMAND[1:], env=environment(database(host), name)
            )
            made = Client(parameters, mode=STATELESS, **wanted)
        else:
            headers = {"Authorization": f"Bearer {new_token(host, name)['token']}"}
            http = await stack.enter_async_context(
                httpx2.AsyncClient(headers=headers, trust_env=False, timeout=60)
            )
            made = Client(
                streamable_http_client(f"{host.url}/mcp", http_client=http), mode=STATELESS, **wanted
            )
        stack.enter_context(anyio.fail_after(60))
        yield await stack.enter_async_context(made)


def with_tasks(**able: Any) -> dict[str, Any]:
    """Return what a request says of a client that speaks the extension."""
    said = envelope()
    said["io.modelcontextprotocol/clientCapabilities"] = {"extensions": {TASKS: {}}, **able}
    return {"_meta": said}


def about(client: RawHttp, method: str, task_id: str, **params: Any) -> Any:
    """Ask about a task; return the message."""
    able = with_tasks(elicitation={})
    return client.stateless(method, {**able, "taskId": task_id, **params}, mcp_name=task_id).json()


def test_a_task_outlives_the_host_asks_its_question_and_ends_with_the_answer(
    model: ModelProcess, tmp_path: Path
) -> None:
    host = new_host(tmp_path, model.url).start()
    polling = Polling()

    async def ask() -> None:
        async def elicited(*_: object) -> ElicitResult:
            raise AssertionError("the task asks")

        wanted = {"extensions": [polling], "elicitation_callback": elicited}
        async with opened(host, "http", "laptop", **wanted) as client:
            await client.call_tool("ask", {"message": ASKS_BACK})

    anyio.run(ask)
    task = polling.task["taskId"]
    assert polling.task["status"] == "working"
    host.kill()
    host.start()
    token = new_token(host, "laptop")["token"]
    stranger = new_token(host, "stranger")["token"]
    with RawHttp(host, token) as client, RawHttp(host, stranger) as other:
        asked = about(client, "tasks/get", task)["result"]
        assert (asked["status"], asked["resultType"]) == ("input_required", "complete")
        ((key, question),) = asked["inputRequests"].items()
        assert question["params"]["message"] == "Which city?"
        for method in ("tasks/get", "tasks/update", "tasks/cancel"):
            assert about(other, method, task)["error"]["code"] == -32602
            assert about(other, method, "run-none")["error"] == about(other, method, task)["error"]
        answer = {"action": "accept", "content": {"answer": "Rome"}}
        said = about(client, "tasks/update", task, inputResponses={key: answer, "appr-other": answer})
        assert said["result"] == {"resultType": "complete"}
        until(lambda: about(client, "tasks/get", task)["result"]["status"] == "completed")
        ended = about(client, "tasks/get", task)["result"]
        assert "Rome" in ended["result"]["structuredContent"]["result"]
        assert (ended["taskId"], ended["result"]["isError"]) == (task, False)
        assert about(client, "tasks/cancel", task)["result"] == {"resultType": "complete"}
        assert about(client, "tasks/get", task)["result"]["status"] == "completed"
    host.stop()


def test_a_task_that_is_cancelled_ends_so_and_a_client_without_the_extension_is_told_what_it_lacks(
    host: HostProcess,
) -> None:
    with RawHttp(host, new_token(host, "cancels")["token"]) as client:
        call = {"name": "ask", "arguments": {"message": ASKS_BACK}, **with_tasks()}
        task = client.stateless("tools/call", call).json()["result"]
        # It could not be asked, so it is told at once how the run stands.
        assert (task["resultType"], task["structuredContent"]["status"]) == ("complete", "paused")
        task_id = task["structuredContent"]["run_id"]
        # Nobody can be asked through this client, so the work waits for a person elsewhere.
        waiting = client.stateless("tasks/get", {**with_tasks(), "taskId": task_id}, mcp_name=task_id).json()
        assert waiting["result"]["status"] == "working"
        assert "POST /approvals/" in waiting["result"]["statusMessage"]
        refused = client.stateless("tasks/get", {"taskId": task_id}, mcp_name=task_id)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32021)
        mismatch = client.stateless("tasks/get", {**with_tasks(), "taskId": task_id}, mcp_name="other")
        assert mismatch.json()["error"]["code"] == -32020
        assert "result" in about(client, "tasks/cancel", task_id)
        assert about(client, "tasks/get", task_id)["result"]["status"] == "cancelled"


async def test_a_request_that_its_client_cancels_stops_the_run(host: HostProcess) -> None:
    async with RawServer(environment(database(host), "impatient")) as server:
        await server.hello()
        call = {"name": "ask", "arguments": {"message": HANGS, "conversation_id": "impatient"}}
        await server.say({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": call})
        with host.client() as client:

            def runs() -> Any:
                return client.get("/chat/impatient/runs").json()["runs"]

            await anyio.to_thread.run_sync(until, runs)
            cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
            await server.say(cancelled)
            await anyio.to_thread.run_sync(until, lambda: runs()[0]["status"] == "cancelled")


STEP: dict[str, Any] = {"tools": [{"name": "list_dir", "input": {"path": "."}}]}


@pytest.mark.parametrize("before", [[], [{"tools": [QUESTION]}]], ids=["at once", "after an answer"])
async def test_an_agent_beside_the_host_hears_how_far_its_run_is(
    host: HostProcess, before: list[dict[str, Any]]
) -> None:
    heard: list[tuple[float, float | None, str | None]] = []
    working = anyio.Event()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))
        if "list_dir" in str(message):
            working.set()

    async def elicited(*_: object) -> ElicitResult:
        return ElicitResult(action="accept", content={"answer": "Oslo"})

    steps = directive(steps=[*before, STEP, {"hang": True}])
    beside = opened(host, "stdio", "curious", elicitation_callback=elicited)
    async with beside as client, anyio.create_task_group() as group:

        async def ask() -> None:
            asked = {"message": steps, "conversation_id": "curious"}
            result = await client.call_tool("ask", asked, progress_callback=hear)
            assert "cancelled" in str(result.structured_content)

        group.start_soon(ask)
        await working.wait()
        with host.client() as own:
            own.post("/chat/curious/cancel").raise_for_status()
            asked = {"conversation_id": "curious", "status": "answered"}
            by = [each["decided_by"] for each in own.get("/approvals", params=asked).json()["approvals"]]
            assert [(each["door"], each["token_id"]) for each in by] == [("mcp", "stdio")] * len(before)
    steps_done = len(before) + 1
    assert heard[-1] == (steps_done, None, f"{steps_done} steps done; last tool: list_dir")


def nested(times: int, server: str, other: str) -> str:
    """Return a message that has agents ask each other so many times."""
    if not times:
        return directive(text="far enough")
    call = {"name": f"mcp__{server}__ask", "input": {"message": nested(times - 1, other, server)}}
    return directive(steps=[{"tools": [call]}, {"text": "$results"}])


def test_agents_that_ask_each_other_stop_at_a_depth(model: ModelProcess, tmp_path: Path) -> None:
    a, b = new_host(tmp_path / "a", model.url), new_host(tmp_path / "b", model.url)
    a.port, b.port = free_port(), free_port()
    for host, name, other in ((a, "b", b), (b, "a", a)):
        reach = {"url": f"{other.url}/mcp", "headers": {"Authorization": f"Bearer {TOKEN}"}}
        configure(host, tools={"mcp": {"servers": {name: reach}}})
    for host in (b, a):
        with RawHttp(host.start(), TOKEN) as visitor:
            until(lambda: "result" in visitor.stateless("tools/list").json())
    with a.client() as client:
        for times, ending in ((3, "far enough"), (4, "asked each other 4 deep")):
            answer = client.post("/chat", json={"message": nested(times, "b", "a")}).json()
            assert ending in answer["result"], answer
    a.kill()
    b.kill()


def test_a_request_says_how_deep_it_is_and_may_not_say_less_than_nothing(host: HostProcess) -> None:
    with RawHttp(host, new_token(host, "deep")["token"]) as client:
        for depth, refused in (
            (-5, False),
            ("9", False),
            (None, False),
            (3, False),
            (4, True),
            (2**70, True),
        ):
            call = {"name": "ask", "arguments": {"message": "hi"}, "_meta": {**envelope(), DEPTH: depth}}
            answer = client.stateless("tools/call", call).json()["result"]
            assert answer["isError"] is refused, depth


@pytest.mark.parametrize(
    "message", ["", " ", "a\0b", "x" * (2**20 + 1)], ids=["none", "blank", "NUL", "long"]
)
def test_a_message_that_post_chat_refuses_is_refused_by_its_name(host: HostProcess, message: str) -> None:
    with RawHttp(host, new_token(host, "wrong")["token"]) as client:
        call = {"name": "ask", "arguments": {"message": message}, "_meta": envelope()}
        answer = client.stateless("tools/call", call).json()["result"]
        assert (answer["isError"], answer["content"][0]["text"].split(":")[0]) == (True, "message")


IMPATIENT = "import sys, host.http.mcp.asks as asks; asks.PATIENCE_S = 0.0; from host.cli import main; "


def test_an_answer_that_takes_long_is_a_task_or_running(model: ModelProcess, tmp_path: Path) -> None:
    host = new_host(tmp_path, model.url)
    host.command = (sys.executable, "-c", f"{IMPATIENT} main()", "serve")
    host.start()
    with RawHttp(host, TOKEN) as client:
        call = {"name": "ask", "arguments": {"message": HANGS}}
        plain = client.stateless("tools/call", call).json()["result"]
        assert (plain["isError"], plain["structuredContent"]["status"]) == (False, "running")
        task = client.stateless("tools/call", {**call, **with_tasks()}).json()["result"]
        assert (task["resultType"], task["status"], task["pollIntervalMs"]) == ("task", "working", 2000)
        for run_id in (plain["structuredContent"]["run_id"], task["taskId"]):
            seen = about(client, "tasks/get", run_id)["result"]
            assert (seen["status"], seen["statusMessage"]) == ("working", "0 steps done; last tool: None")
            assert "result" in about(client, "tasks/cancel", run_id)
    host.kill()
