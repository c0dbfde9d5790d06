"""``picoclaw webhook``: who is told how runs end, and what became of it."""

import time
from typing import Annotated, Any, Final

import typer

from host.cli.client import HostClient, asking, at
from host.cli.terminal import Told, listing, local_time, milliseconds, shown

app = typer.Typer(help="Who is told how runs end.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The webhook's id, as `list` shows it.")]
TEST_WITHIN_S: Final = 15.0


@app.command("list")
@asking
def list_webhooks(client: HostClient) -> Told:
    """List webhooks, without their secrets."""
    return listing(
        list(client.pages("/webhooks", "webhooks")),
        "No webhooks.",
        {
            "id": "id",
            "address": "url",
            "events": lambda each: ", ".join(each["events"]),
            "state": lambda each: "enabled" if each["enabled"] else f"disabled ({each['disabled_reason']})",
            "last error": "last_error",
        },
    )


@app.command()
@asking
def add(
    client: HostClient,
    address: Annotated[str, typer.Argument(help="Where it is: https://…")],
    event: Annotated[list[str] | None, typer.Option(help="What it is told; again for more.")] = None,
    everybody: Annotated[bool, typer.Option("--everybody", help="Of all principals.")] = False,
    no_content: Annotated[bool, typer.Option("--no-content", help="Send ids and statuses alone.")] = False,
) -> Told:
    """Have an address told how runs end, and write its secret to standard output, once."""
    body: dict[str, Any] = {"url": address, "events": event or ["run.ended"], "content": not no_content}
    if everybody:
        body["principals"] = "*"
    made = client.request("POST", "/webhooks", body)
    return Told(made, made["secret"])


@app.command("test")
@asking
def send_test(client: HostClient, webhook_id: Id) -> Told:
    """Send it a test event, and say what it answered."""
    asked = client.request("POST", at("webhooks", webhook_id, "test"))
    done = _tried(client, webhook_id, asked)
    words = f"{shown(done['status'])} {shown(done['error'] or '')}".strip()
    return Told(done, words, ok=done["status"] == "delivered")


@app.command()
@asking
def rotate(
    client: HostClient,
    webhook_id: Id,
    keep_old: Annotated[str, typer.Option(help="How long the secret before signs too, such as 24h.")] = "24h",
) -> Told:
    """Give it a new secret, and write that to standard output, once."""
    body = {"keep_old_ms": milliseconds(keep_old, "--keep-old")}
    made = client.request("POST", at("webhooks", webhook_id, "secret"), body)
    return Told(made, made["secret"])


@app.command()
@asking
def deliveries(
    client: HostClient,
    webhook_id: Id,
    status: Annotated[str | None, typer.Option(help="waiting, held, delivered or dead.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most to list.")] = 20,
) -> Told:
    """List what it was told, newest first."""
    params = {"limit": str(limit)} | ({} if status is None else {"status": status})
    found = client.request("GET", at("webhooks", webhook_id, "deliveries"), params=params)["deliveries"]
    return listing(
        found,
        "No deliveries.",
        {
            "id": "id",
            "event": "type",
            "when": lambda each: local_time(each["created_at"]),
            "status": "status",
            "tries": lambda each: str(each["attempts"]),
            "last error": "error",
        },
    )


@app.command()
@asking
def replay(
    client: HostClient, webhook_id: Id, delivery_id: Annotated[str, typer.Argument(help="The delivery's id.")]
) -> Told:
    """Send an event once more, with the same id."""
    again = client.request("POST", at("webhooks", webhook_id, "deliveries", delivery_id, "replay"))
    return Told(again, f"{shown(again['id'])} is tried again.")


@app.command()
@asking
def release(client: HostClient) -> Told:
    """Let go what waits since the store was restored or copied: somebody may have been told already."""
    done = client.request("POST", "/webhooks/release")
    return Told(done, f"{done['released']:,} deliveries wait no more.")


def _tried(client: HostClient, webhook_id: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Return a delivery once it has ended, or as it is after a while."""
    until = time.monotonic() + TEST_WITHIN_S
    while True:
        found = client.request("GET", at("webhooks", webhook_id, "deliveries"), params={"limit": "100"})
        now: dict[str, Any] = next((each for each in found["deliveries"] if each["id"] == asked["id"]), asked)
        if now["ended_at"] is not None or time.monotonic() > until:
            return now
        time.sleep(0.2)
