"""``picoclaw webhook``: who is told how runs end, and what became of it."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from host.cli.client import HostClient, Json, Token, Url, host
from host.cli.terminal import local_time, milliseconds, shown, table, tell

app = typer.Typer(help="Who is told how runs end.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The webhook's id, as `list` shows it.")]
TEST_WITHIN_S: Final = 15.0


@app.command("list")
def list_webhooks(url: Url = None, token: Token = None, json: Json = False) -> None:
    """List webhooks, without their secrets."""
    with host(url, token, say=not json) as client:
        webhooks = list(client.pages("/webhooks", "webhooks"))
    made = table("id", "address", "events", "state", "last error")
    for each in webhooks:
        state = "enabled" if each["enabled"] else f"disabled ({each['disabled_reason']})"
        told = (each["id"], each["url"], ", ".join(each["events"]), state, each["last_error"] or "")
        made.add_row(*map(shown, told))
    tell(webhooks, made if webhooks else "No webhooks.", json=json)


@app.command()
def add(
    address: Annotated[str, typer.Argument(help="Where it is: https://…")],
    event: Annotated[list[str] | None, typer.Option(help="What it is told; again for more.")] = None,
    everybody: Annotated[bool, typer.Option("--everybody", help="Of all principals.")] = False,
    no_content: Annotated[bool, typer.Option("--no-content", help="Send ids and statuses alone.")] = False,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Have an address told how runs end, and write its secret to standard output, once."""
    body: dict[str, Any] = {"url": address, "events": event or ["run.ended"], "content": not no_content}
    if everybody:
        body["principals"] = "*"
    with host(url, token) as client:
        made = client.request("POST", "/webhooks", body)
    tell(made, made["secret"], json=json)


@app.command("test")
def send_test(webhook_id: Id, url: Url = None, token: Token = None, json: Json = False) -> None:
    """Send it a test event, and say what it answered."""
    with host(url, token) as client:
        asked = client.request("POST", f"{_path(webhook_id)}/test")
        done = _tried(client, webhook_id, asked)
    tell(done, f"{shown(done['status'])} {shown(done['error'] or '')}".strip(), json=json)
    raise SystemExit(0 if done["status"] == "delivered" else 1)


@app.command()
def rotate(
    webhook_id: Id,
    keep_old: Annotated[str, typer.Option(help="How long the secret before signs too, such as 24h.")] = "24h",
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Give it a new secret, and write that to standard output, once."""
    body = {"keep_old_ms": milliseconds(keep_old, "--keep-old")}
    with host(url, token) as client:
        made = client.request("POST", f"{_path(webhook_id)}/secret", body)
    tell(made, made["secret"], json=json)


@app.command()
def deliveries(
    webhook_id: Id,
    status: Annotated[str | None, typer.Option(help="waiting, held, delivered or dead.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most to list.")] = 20,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """List what it was told, newest first."""
    params = {"limit": str(limit)} | ({} if status is None else {"status": status})
    with host(url, token, say=not json) as client:
        found = client.request("GET", f"{_path(webhook_id)}/deliveries", params=params)["deliveries"]
    made = table("id", "event", "when", "status", "tries", "last error")
    for each in found:
        told = (each["status"], str(each["attempts"]), each["error"] or "")
        made.add_row(
            shown(each["id"]), shown(each["type"]), local_time(each["created_at"]), *map(shown, told)
        )
    tell(found, made if found else "No deliveries.", json=json)


@app.command()
def replay(
    webhook_id: Id,
    delivery_id: Annotated[str, typer.Argument(help="The delivery's id.")],
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Send an event once more, with the same id."""
    path = f"{_path(webhook_id)}/deliveries/{quote(delivery_id, safe='')}/replay"
    with host(url, token) as client:
        again = client.request("POST", path)
    tell(again, f"{shown(again['id'])} is tried again.", json=json)


@app.command()
def release(url: Url = None, token: Token = None, json: Json = False) -> None:
    """Let go what waits since the store was restored or copied: somebody may have been told already."""
    with host(url, token) as client:
        done = client.request("POST", "/webhooks/release")
    tell(done, f"{done['released']:,} deliveries wait no more.", json=json)


def _tried(client: HostClient, webhook_id: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Return a delivery once it has ended, or as it is after a while."""
    until = time.monotonic() + TEST_WITHIN_S
    while True:
        found = client.request("GET", f"{_path(webhook_id)}/deliveries", params={"limit": "100"})
        now: dict[str, Any] = next((each for each in found["deliveries"] if each["id"] == asked["id"]), asked)
        if now["ended_at"] is not None or time.monotonic() > until:
            return now
        time.sleep(0.2)


def _path(webhook_id: str) -> str:
    return f"/webhooks/{quote(webhook_id, safe='')}"
