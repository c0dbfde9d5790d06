"""``picoclaw token``: credentials of outside agents, each bound to one conversation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from host.cli.client import HostClient, asking, at
from host.cli.terminal import Told, listing, milliseconds, shown

Expires = Annotated[
    str | None, typer.Option(help="How long it lasts, such as 90d, 12h or 30m; until it is revoked.")
]

app = typer.Typer(help="Tokens with which outside agents reach /mcp.", no_args_is_help=True)


@app.command()
@asking
def create(
    client: HostClient,
    conversation: Annotated[str, typer.Option(help="The conversation it acts for; made if there is none.")],
    main: Annotated[
        bool, typer.Option("--main", help="It may see and change everybody's tasks and write to all.")
    ] = False,
    expires: Expires = None,
) -> Told:
    """Make a token and write it to standard output, once: the host keeps only a digest."""
    return issue(client, "/tokens", {"conversation_id": conversation, "main": main}, expires)


def issue(client: HostClient, path: str, body: dict[str, Any], expires: str | None) -> Told:
    """Have a token made."""
    if expires is not None:
        body["expires_in_ms"] = milliseconds(expires, "--expires")
    made = client.request("POST", path, body)
    return Told(made, made["token"])


@app.command("list")
@asking
def list_tokens(client: HostClient) -> Told:
    """List the tokens, without their texts."""
    return listing(
        list(client.pages("/tokens", "tokens")),
        "No tokens.",
        {
            "id": "id",
            "conversation": "conversation_id",
            "main": lambda token: "yes" if token["main"] else "",
            "made": "created_at",
            "expires": _expiry,
        },
    )


@app.command()
@asking
def revoke(
    client: HostClient,
    token_id: Annotated[str, typer.Argument(help="The token's id, as `list` shows it.")],
) -> Told:
    """End a token at once."""
    client.request("DELETE", at("tokens", token_id))
    return Told({"revoked": token_id}, f"Revoked {shown(token_id)}.")


def _expiry(token: dict[str, Any]) -> str | Text:
    at = token["expires_at"]
    gone = at is not None and datetime.fromisoformat(at) <= datetime.now(UTC)
    return Text(f"{at}, expired", style="red") if gone else at or "never"
