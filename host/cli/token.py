"""``picoclaw token``: credentials of outside agents, each bound to one conversation."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import quote

import typer

from host.cli.client import Json, Token, Url, host
from host.cli.terminal import fail, out, print_json, shown, table

UNITS_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}

app = typer.Typer(help="Tokens with which outside agents reach /mcp.", no_args_is_help=True)


@app.command()
def create(
    conversation: Annotated[str, typer.Option(help="The conversation it acts for; made if there is none.")],
    main: Annotated[
        bool, typer.Option("--main", help="It may see and change everybody's tasks and write to all.")
    ] = False,
    expires: Annotated[
        str | None, typer.Option(help="How long it lasts, such as 90d, 12h or 30m; until it is revoked.")
    ] = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Make a token and write it to standard output, once: the host keeps only a digest."""
    body: dict[str, object] = {"conversation_id": conversation, "main": main}
    if expires is not None:
        body["expires_in_ms"] = _span_ms(expires)
    with host(url, token) as client:
        made = client.request("POST", "/tokens", body)
    if json:
        print_json(made)
        return
    sys.stdout.write(made["token"] + "\n")


@app.command("list")
def list_tokens(url: Url = None, token: Token = None, json: Json = False) -> None:
    """List the tokens, without their texts."""
    with host(url, token, say=not json) as client:
        tokens = list(client.pages("/tokens", "tokens"))
    if json:
        print_json(tokens)
        return
    made = table("id", "conversation", "main", "made", "expires")
    for item in tokens:
        made.add_row(
            shown(item["id"]),
            shown(item["conversation_id"]),
            "yes" if item["main"] else "",
            shown(item["created_at"]),
            _expiry(item["expires_at"]),
        )
    out.print(made if tokens else "No tokens.")


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="The token's id, as `list` shows it.")],
    url: Url = None,
    token: Token = None,
) -> None:
    """End a token at once."""
    with host(url, token) as client:
        client.request("DELETE", f"/tokens/{quote(token_id, safe='')}")
    out.print(f"Revoked {shown(token_id)}.")


def _span_ms(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit() and len(number) <= 6 and unit in UNITS_MS):
        fail("--expires takes a number and m, h or d, such as 90d.", 2)
    return int(number) * UNITS_MS[unit]


def _expiry(at: str | None) -> str:
    if at is None:
        return "never"
    gone = datetime.fromisoformat(at) <= datetime.now(UTC)
    return f"[red]{shown(at)}, expired[/]" if gone else shown(at)
