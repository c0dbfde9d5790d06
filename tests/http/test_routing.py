"""docs/extending.md, "Add a route", as it stands there: answered, refused and told of as it is declared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from host.http.callers import operator
from host.http.middleware import Exchange
from host.http.openapi import OpenApi
from host.http.routing import PAGE, Api, operation, router
from host.telemetry import Metrics
from shared.shapes import PageShape

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "extending.md"
ROUTE: Final = DOCUMENT.read_text().partition("## Add a route")[2]


class NewestApi(Api):
    """A path that could also be read as an id, declared behind it."""

    @operation("GET", "/notes/newest", parameters=PAGE)
    async def newest(self, request: Request) -> PageShape:
        """The newest notes."""
        return {"next_cursor": None}


@pytest.fixture
async def client() -> httpx2.AsyncClient:
    names: dict[str, Any] = {}
    [code] = re.findall(r"```python\n(.*?)```", ROUTE, re.DOTALL)
    exec(compile(code, DOCUMENT, "exec", dont_inherit=True), names)
    apis = [names["NotesApi"](), NewestApi()]
    contract = OpenApi("1", [each for api in apis for each in api.operations()])
    routes = router([*apis, contract])

    async def by_operator(scope: Scope, receive: Receive, send: Send) -> None:
        await routes({**scope, "open": False, "caller": operator("main")}, receive, send)

    app = Exchange(by_operator, version="1", commit="", redact=str, counts=Metrics())
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://host")


async def test_a_method_answers_with_the_status_that_it_declares(client: httpx2.AsyncClient) -> None:
    kept = await client.put("/notes/a", json={"text": "x"})
    assert (kept.status_code, kept.json()) == (201, {"id": "a", "text": "x"})
    assert (await client.get("/notes/a")).json() == kept.json()
    gone = await client.delete("/notes/a")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await client.head("/notes/newest")).status_code == 200


@pytest.mark.parametrize("path", ["/notes%2Fa", "/notes%2fnewest", "%2Fnotes/a"])
async def test_a_slash_that_is_written_as_part_of_a_name_is_none_of_a_path(
    client: httpx2.AsyncClient, path: str
) -> None:
    await client.put("/notes/a", json={"text": "x"})
    gone = await client.delete(path)
    assert (gone.status_code, gone.json()["error"]) == (404, "There is nothing at this path.")
    assert (await client.get("/notes/a")).status_code == 200


async def test_a_path_goes_before_an_id_wherever_it_is_declared(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/notes/newest")).json() == {"next_cursor": None}
    assert (await client.get("/notes/other")).json()["error"] == "note not found: other"


async def test_what_is_not_declared_is_refused_in_a_sentence(client: httpx2.AsyncClient) -> None:
    wrong = await client.put("/notes/a", json={"words": "x"})
    assert (wrong.status_code, wrong.json()["error"]) == (400, "text: is required")
    patched = await client.patch("/notes/a")
    assert patched.status_code == 405
    assert set(patched.headers["allow"].split(", ")) == {"PUT", "GET", "HEAD", "DELETE"}
    assert (await client.get("/nowhere")).json()["code"] == "not_found"


async def test_the_document_tells_what_the_method_says(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    put = document["paths"]["/notes/{id}"]["put"]
    note = {"application/json": {"schema": {"$ref": "#/components/schemas/NoteShape"}}}
    assert put["summary"] == "Keep a note"
    assert put["responses"]["201"] == {"description": "Keep a note", "content": note}
    assert {"400", "401", "404", "409", "413", "415"} < set(put["responses"])
    assert put["requestBody"]["required"]
    assert document["components"]["schemas"]["NoteShape"]["required"] == ["id", "text"]
    newest = document["paths"]["/notes/newest"]["get"]
    assert [each["name"] for each in newest["parameters"]] == ["limit", "cursor"]
    assert "200" not in document["paths"]["/notes/{id}"]["delete"]["responses"]
    assert "204" in document["paths"]["/notes/{id}"]["delete"]["responses"]
