"""``picoclaw token``: credentials of outside agents, each bound to one conversation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer

from host.cli.client import Json, Token, Url, host
from host.cli.terminal import milliseconds, shown, table, tell

Expires = Annotated[
    str | None, typer.Option(help="How long it lasts, such as 90d, 12h or 30m; until it is revoked.")
]

app = typer.Typer(help="Tokens with which outside agents reach /mcp.", no_args_is_help=True)


@app.command()
def create(
    conversation: Annotated[str, typer.Option(help="The conversation it acts for; made if there is none.")],
    main: Annotated[
        bool, typer.Option("--main", help="It may see and change everybody's tasks and write to all.")
    ] = False,
    expires: Expires = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Make a token and write it to standard output, once: the host keeps only a digest."""
    body = {"conversation_id": conversation, "main": main}
    issue("/tokens", body, expires, url, token, json=json)


def issue(
    path: str, body: dict[str, Any], expires: str | None, url: str | None, token: str | None, *, json: bool
) -> None:
    """Have a token made, and write it to standard output."""
    if expires is not None:
        body["expires_in_ms"] = milliseconds(expires, "--expires")
    with host(url, token) as client:
        made = client.request("POST", path, body)
    tell(made, made["token"], json=json)


@app.command("list")
def list_tokens(url: Url = None, token: Token = None, json: Json = False) -> None:
    """List the tokens, without their texts."""
    with host(url, token, say=not json) as client:
        tokens = list(client.pages("/tokens", "tokens"))
    made = table("id", "conversation", "main", "made", "expires")
    for item in tokens:
        made.add_row(
            shown(item["id"]),
            shown(item["conversation_id"]),
            "yes" if item["main"] else "",
            shown(item["created_at"]),
            _expiry(item["expires_at"]),
        )
    tell(tokens, made if tokens else "No tokens.", json=json)


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="The token's id, as `list` shows it.")],
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """End a token at once."""
    with host(url, token) as client:
        client.request("DELETE", f"/tokens/{quote(token_id, safe='')}")
    tell({"revoked": token_id}, f"Revoked {shown(token_id)}.", json=json)


def _expiry(at: str | None) -> str:
    if at is None:
        return "never"
    gone = datetime.fromisoformat(at) <= datetime.now(UTC)
    return f"[red]{shown(at)}, expired[/]" if gone else shown(at)
