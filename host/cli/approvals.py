"""``picoclaw approvals``: what waits for a person's word at a running host."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from host.cli.client import HostClient, Json, Token, Url, host
from host.cli.terminal import local_time, shown, table, tell
from shared import jsons

app = typer.Typer(help="What waits for a person's word at a running host.", no_args_is_help=True)

Request = Annotated[str, typer.Argument(help="The request's id.")]
Words = Annotated[str | None, typer.Option("--message", help="What the agent is told.")]


@app.command("list")
def list_approvals(url: Url = None, token: Token = None, json: Json = False) -> None:
    """List what waits, whole, oldest first."""
    with host(url, token, say=not json) as client:
        found = list(client.pages("/approvals", "approvals", status="pending"))
    tell(found, _table(found) if found else "Nothing waits.", json=json)


@app.command()
def allow(
    request: Request,
    remember: Annotated[
        bool, typer.Option("--remember", help="Don't ask again about this call in its conversation.")
    ] = False,
    tokens: Annotated[int | None, typer.Option(min=1, help="Past a budget: tokens it may use.")] = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Allow a call that `list` shows, as it is shown."""
    more = {"remember": "conversation" if remember else None, "allow_tokens": tokens}
    _answer(request, {"decision": "allow", **more}, url, token, json=json)


@app.command()
def deny(
    request: Request, message: Words = None, url: Url = None, token: Token = None, json: Json = False
) -> None:
    """Deny a call, or leave a question without an answer."""
    _answer(request, {"decision": "deny", "message": message}, url, token, json=json)


@app.command()
def answer(
    request: Request,
    message: Annotated[str, typer.Argument(help="The answer.")],
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Answer the agent's question."""
    _answer(request, {"decision": "answer", "message": message}, url, token, json=json)


def _answer(request: str, said: dict[str, Any], url: Url, token: Token, *, json: bool) -> None:
    with host(url, token, say=not json) as client:
        told = decided(client, request, said)
    goes_on = f"; it goes on as {told['run_id']}" if told["run_id"] else ""
    tell(told, f"{shown(told['id'])} is {told['status']}{shown(goes_on)}.", json=json)


def decided(client: HostClient, request: str, said: dict[str, Any]) -> dict[str, Any]:
    """Answer a request as it is shown, and return what the host says of that; raises HostFault."""
    path = f"/approvals/{quote(request, safe='')}"
    asked = client.request("GET", path)
    proof = None if asked["kind"] == "budget" else asked["input_sha256"]
    body = {**said, "input_sha256": proof}
    told: dict[str, Any] = client.request(
        "POST", path, {name: value for name, value in body.items() if value is not None}
    )
    return told


def _table(found: list[dict[str, Any]]) -> Table:
    made = table("id", "kind", "tool", "input", "expires")
    for each in found:
        expires = shown(local_time(each["expires_at"])) if each["expires_at"] else ""
        what = shown(jsons.dumps(each["input"]))
        made.add_row(shown(each["id"]), each["kind"], shown(each["tool"]), what, expires)
    return made
