"""``picoclaw approvals``: what waits for a person's word at a running host."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from host.cli.client import HostClient, asking, at
from host.cli.terminal import Told, listing, local_time, shown
from shared import jsons

app = typer.Typer(help="What waits for a person's word at a running host.", no_args_is_help=True)

Request = Annotated[str, typer.Argument(help="The request's id.")]


@app.command("list")
@asking
def list_approvals(client: HostClient) -> Told:
    """List what waits, whole, oldest first."""
    return listing(
        list(client.pages("/approvals", "approvals", status="pending")),
        "Nothing waits.",
        {
            "id": "id",
            "kind": "kind",
            "tool": "tool",
            "input": lambda each: jsons.dumps(each["input"]),
            "expires": lambda each: local_time(each["expires_at"]) if each["expires_at"] else "",
        },
    )


@app.command()
@asking
def allow(
    client: HostClient,
    request: Request,
    remember: Annotated[
        bool, typer.Option("--remember", help="Don't ask again about this call in its conversation.")
    ] = False,
    tokens: Annotated[int | None, typer.Option(min=1, help="Past a budget: tokens it may use.")] = None,
) -> Told:
    """Allow a call that `list` shows, as it is shown."""
    kept = "conversation" if remember else None
    return _answer(client, request, decision="allow", remember=kept, allow_tokens=tokens)


@app.command()
@asking
def deny(
    client: HostClient,
    request: Request,
    message: Annotated[str | None, typer.Option("--message", help="What the agent is told.")] = None,
) -> Told:
    """Deny a call, or leave a question without an answer."""
    return _answer(client, request, decision="deny", message=message)


@app.command()
@asking
def answer(
    client: HostClient, request: Request, message: Annotated[str, typer.Argument(help="The answer.")]
) -> Told:
    """Answer the agent's question."""
    return _answer(client, request, decision="answer", message=message)


def _answer(client: HostClient, request: str, **said: Any) -> Told:
    told = decided(client, request, said)
    goes_on = f"; it goes on as {told['run_id']}" if told["run_id"] else ""
    return Told(told, f"{shown(told['id'])} is {told['status']}{shown(goes_on)}.")


def decided(client: HostClient, request: str, said: dict[str, Any]) -> dict[str, Any]:
    """Answer a request as it is shown, and return what the host says of that; raises HostFault."""
    path = at("approvals", request)
    asked = client.request("GET", path)
    proof = None if asked["kind"] == "budget" else asked["input_sha256"]
    body = {**said, "input_sha256": proof}
    told: dict[str, Any] = client.request(
        "POST", path, {name: value for name, value in body.items() if value is not None}
    )
    return told
