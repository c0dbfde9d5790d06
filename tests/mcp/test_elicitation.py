"""What a server asks a person waits at the gate as any question; its call is made again with the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import httpx2
import pytest
from anyio.from_thread import start_blocking_portal
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.resolve import Elicit, Resolve
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.routing import Mount

from host.mcp_clients.toolset import content_of, question_of
from tests.http.conftest import configure
from tests.http.test_approvals import answered, chat, goes_on
from tests.mcp.other_servers import listening
from tests.running import HostProcess, directive, new_host, running_model

TAKEN: list[str] = []
"""What the servers have booked."""


class City(BaseModel):
    city: str = Field(description="Where to")


class Details(BaseModel):
    nights: int = 2
    breakfast: bool = True


def which_city() -> Elicit[City]:
    return Elicit("Which city?", City)


def which_details(city: Annotated[City, Resolve(which_city)]) -> Elicit[Details]:
    return Elicit(f"Details for {city.city}?", Details)


def booking_server() -> MCPServer:
    server = MCPServer("booking")

    @server.tool()
    def book(
        city: Annotated[City, Resolve(which_city)], details: Annotated[Details, Resolve(which_details)]
    ) -> str:
        """Book a room."""
        TAKEN.append(city.city)
        return f"booked {details.nights} nights in {city.city}, breakfast: {details.breakfast}"

    return server


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostProcess, str]]:
    both = booking_server()
    # Over SSE the protocol is the one with a handshake, in which servers ask in the middle of a call.
    app = Starlette(routes=[Mount("/old", booking_server().sse_app())])
    with (
        running_model() as model,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(listening(both.streamable_http_app())) as new,
        portal.wrap_async_context_manager(listening(app)) as old,
    ):
        host = new_host(tmp_path_factory.mktemp("asked"), model.url)
        servers = {"new": {"url": f"{new}/mcp"}, "old": {"type": "sse", "url": f"{old}/old/sse"}}
        configure(host, tools={"mcp": {"servers": servers}})
        try:
            yield host.start(), model.url
        finally:
            host.stop()


def booking(client: httpx2.Client, server: str) -> dict[str, Any]:
    call = {"name": f"mcp__{server}__book", "input": {}}
    return chat(client, directive(steps=[{"tools": [call]}, {"text": "done: $results"}]))


@pytest.mark.parametrize("server", ["new", "old"])
def test_questions_of_a_server_wait_for_a_person_one_after_the_other(
    place: tuple[HostProcess, str], server: str
) -> None:
    TAKEN.clear()
    with place[0].client() as client:
        told = booking(client, server)
        assert (told["status"], told["code"]) == ("paused", "question"), told
        (first,) = told["requests"]
        assert (first["kind"], first["tool"], first["reason"]) == (
            "question",
            f"mcp__{server}__book",
            "elicitation",
        )
        assert first["input"]["question"].startswith(f"The MCP server {server} asks: Which city?\n")
        assert first["input"]["call"] == {}
        assert answered(client, first, "allow").status_code == 400
        assert answered(client, first, "answer", message="Oslo").json()["status"] == "allowed"
        paused = goes_on(client, told)
        assert (paused["status"], TAKEN) == ("paused", [])
        (second,) = client.get("/approvals", params={"status": "pending"}).json()["approvals"]
        assert "Details for Oslo?" in second["input"]["question"]
        assert client.get(f"/approvals/{first['id']}").json()["status"] == "done"
        assert answered(client, second, "answer", message='{"nights": 5}').status_code == 200
        assert goes_on(client, {**told, "run_id": paused["run_id"]})["status"] == "success"
        messages = client.get(f"/chat/{told['conversation_id']}/messages").json()["messages"]
        assert "booked 5 nights in Oslo, breakfast: True" in messages[-1]["content"]
        assert TAKEN == ["Oslo"]


@pytest.mark.parametrize("answer", ["two nights", '{"nights": "two"}', '{"nights": 2.5}'])
def test_an_answer_that_does_not_fit_is_declined(place: tuple[HostProcess, str], answer: str) -> None:
    TAKEN.clear()
    with place[0].client() as client:
        told = booking(client, "new")
        answered(client, told["requests"][0], "answer", message="Rome")
        paused = goes_on(client, told)
        (second,) = client.get("/approvals", params={"status": "pending"}).json()["approvals"]
        answered(client, second, "answer", message=answer)
        ended = goes_on(client, {**told, "run_id": paused["run_id"]})
        assert (ended["status"], TAKEN) == ("success", [])
        (warning,) = client.get(f"/runs/{ended['run_id']}").json()["answer"]["warnings"]
        assert "whose answer doesn't fit the form: it was declined" in warning


@pytest.mark.parametrize("server", ["new", "old"])
def test_a_question_that_is_left_without_an_answer_ends_the_call_and_is_told(
    place: tuple[HostProcess, str], server: str
) -> None:
    TAKEN.clear()
    with place[0].client() as client:
        told = booking(client, server)
        assert answered(client, told["requests"][0], "deny", message="not now").status_code == 200
        assert goes_on(client, told)["status"] == "success"
        messages = client.get(f"/chat/{told['conversation_id']}/messages").json()["messages"]
        assert "not now" in messages[-1]["content"]
        assert TAKEN == []


def test_a_subagent_waits_for_the_answer_too(place: tuple[HostProcess, str]) -> None:
    TAKEN.clear()
    call = {"name": "mcp__new__book", "input": {}}
    task = directive(steps=[{"tools": [call]}, {"text": "child: $results"}])
    spawn = {"name": "spawn", "input": {"task": task}}
    with place[0].client() as client:
        told = chat(client, directive(steps=[{"tools": [spawn]}, {"text": "done: $results"}]))
        (first,) = told["requests"]
        assert (first["kind"], first["subagent"]) == ("question", "1")
        answered(client, first, "answer", message="Oslo")
        paused = goes_on(client, told)
        (second,) = client.get("/approvals", params={"status": "pending"}).json()["approvals"]
        answered(client, second, "answer", message='{"nights": 5}')
        assert goes_on(client, {**told, "run_id": paused["run_id"]})["status"] == "success"
        messages = client.get(f"/chat/{told['conversation_id']}/messages").json()["messages"]
        assert "booked 5 nights in Oslo, breakfast: True" in messages[-1]["content"]
        assert TAKEN == ["Oslo"]


def test_a_message_in_the_conversation_leaves_a_servers_question_without_an_answer(
    place: tuple[HostProcess, str],
) -> None:
    TAKEN.clear()
    with place[0].client() as client:
        told = booking(client, "new")
        after = chat(client, "hello", conversation_id=told["conversation_id"], deny_pending=True)
        assert after["result"] == "echo: hello"
        question_of = client.get(f"/approvals/{told['requests'][0]['id']}").json()
        assert question_of["status"] == "denied"
        assert TAKEN == []


FORM = {
    "properties": {
        "name": {"type": "string", "default": "John"},
        "age": {"type": "integer"},
        "sure": {"type": "boolean", "default": True},
    }
}


@pytest.mark.parametrize(
    ("form", "answer", "wanted"),
    [
        (FORM, '{"age": 3}', {"name": "John", "age": 3, "sure": True}),
        (FORM, "{}", {"name": "John", "sure": True}),
        (FORM, "John, 3", None),
        (FORM, '{"age": {"years": 3}}', None),
        (FORM, '{"age": [1]}', None),
        ({"properties": {"size": {"type": "array"}}}, '["s", "m"]', {"size": ["s", "m"]}),
        ({"properties": {"city": {"type": "string"}}}, "17", {"city": "17"}),
        ({"properties": {"city": {"type": "string"}}}, '{"city": "Rome"}', {"city": "Rome"}),
        ({"properties": {"age": {"type": "integer"}}}, "17", {"age": 17}),
        ({"properties": {"sure": {"type": "boolean"}}}, "true", {"sure": True}),
        ({"properties": {}}, "yes", {}),
        ({"properties": "odd"}, "yes", {}),
        ({}, "yes", {}),
    ],
)
def test_an_answer_is_read_as_the_form_wants_it(form: dict[str, Any], answer: str, wanted: object) -> None:
    assert content_of(form, answer) == wanted


def test_the_question_names_the_server_its_fields_and_the_choices() -> None:
    choice = {"properties": {"size": {"type": "string", "enum": ["s", "m"]}}}
    assert question_of("shop", "Which\nsize?", choice) == {
        "question": "The MCP server shop asks: Which\\nsize?\n"
        'Your answer is size: {"type":"string","enum":["s","m"]}.',
        "options": ["s", "m"],
    }
    assert question_of("shop", "<system>", {})["question"] == "The MCP server shop asks: &lt;system>"
    assert "Open https://pay.example" in question_of("shop", "Pay", {}, "https://pay.example")["question"]
    assert len(question_of("shop", "x" * 99_999, {})["question"]) < 5_000
