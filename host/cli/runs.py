"""``picoclaw runs``: the runs of a running host."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import typer
from rich.markup import escape

from host.cli.client import HostClient, asking, at
from host.cli.terminal import Told, listing, local_time, milliseconds, safe, shown, took

WAIT_MS: Final = 60_000
"""How long one request waits."""

app = typer.Typer(help="The runs of a running host.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="The run's id.")]
Narrowed = Annotated[str | None, typer.Option()]


@app.command("list")
@asking
def list_runs(
    client: HostClient,
    status: Narrowed = None,
    code: Narrowed = None,
    conversation: Narrowed = None,
    task: Narrowed = None,
    since: Annotated[str | None, typer.Option(help="Begun then or later, such as 2027-03-01.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most runs to list.")] = 20,
) -> Told:
    """List runs of all conversations, the newest first."""
    asked = {"status": status, "code": code, "conversation_id": conversation, "task_id": task, "since": since}
    params = {name: text for name, text in asked.items() if text is not None}
    runs = client.request("GET", "/runs", params={**params, "limit": str(limit)})["runs"]
    return listing(
        runs,
        "No runs.",
        {
            "id": "run_id",
            "started": lambda run: local_time(run["created_at"]),
            "status": _state,
            "took": took,
            "conversation": "conversation_id",
        },
    )


@app.command()
@asking
def show(client: HostClient, run_id: RunId) -> Told:
    """Show a run and its answer."""
    return _shown(client.request("GET", at("runs", run_id)))


@app.command()
@asking
def wait(
    client: HostClient,
    run_id: RunId,
    timeout: Annotated[str | None, typer.Option(help="Longest wait, such as 90s or 2h.")] = None,
) -> Told:
    """Wait until a run, and what continues it, has ended, and show its answer."""
    left = None if timeout is None else milliseconds(timeout, "--timeout")
    run = _waited(client, run_id, left)
    return _shown(run)._replace(ok=run["status"] == "success")


@app.command()
@asking
def cancel(client: HostClient, run_id: RunId) -> Told:
    """Stop a run; its finished steps are kept."""
    asked = client.request("POST", at("runs", run_id, "cancel"))
    return Told(asked, f"Cancelling {shown(asked['run_id'])}.")


def _waited(client: HostClient, run_id: str, left: int | None) -> dict[str, Any]:
    while True:
        now = WAIT_MS if left is None else min(left, WAIT_MS)
        params = {"wait_ms": str(now), "chain": "true"}
        began = time.monotonic()
        run: dict[str, Any] = client.request("GET", at("runs", run_id), params=params, timeout=None)
        left = None if left is None else left - now
        if run["status"] != "running" or left == 0:
            return run
        # A host that has too many who wait, or stops, answers at once.
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))


def _shown(run: dict[str, Any]) -> Told:
    answer = run["answer"] or {}
    said = escape(safe(str(answer.get("result") or run["error"] or "")))
    return Told(run, f"{shown(run['run_id'])}: {shown(_state(run))}, {took(run)}\n{said}")


def _state(run: dict[str, Any]) -> str:
    return f"{run['status']} ({run['code']})" if run.get("code") else str(run["status"])
