"""``picoclaw runs``: the runs of a running host."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.markup import escape

from host.cli.client import HostClient, Json, Token, Url, host
from host.cli.terminal import local_time, milliseconds, out, print_json, safe, shown, table, tell

WAIT_MS: Final = 60_000
"""How long one request waits."""

app = typer.Typer(help="The runs of a running host.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="The run's id.")]
Narrowed = Annotated[str | None, typer.Option()]


@app.command("list")
def list_runs(
    status: Narrowed = None,
    code: Narrowed = None,
    conversation: Narrowed = None,
    task: Narrowed = None,
    since: Annotated[str | None, typer.Option(help="Begun then or later, such as 2027-03-01.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most runs to list.")] = 20,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """List runs of all conversations, the newest first."""
    asked = {"status": status, "code": code, "conversation_id": conversation, "task_id": task, "since": since}
    params = {name: text for name, text in asked.items() if text is not None}
    with host(url, token, say=not json) as client:
        runs = client.request("GET", "/runs", params={**params, "limit": str(limit)})["runs"]
    made = table("id", "started", "status", "took", "conversation")
    for run in runs:
        made.add_row(
            shown(run["run_id"]),
            local_time(run["created_at"]),
            shown(_state(run)),
            _took(run),
            shown(run["conversation_id"]),
        )
    tell(runs, made if runs else "No runs.", json=json)


@app.command()
def show(run_id: RunId, url: Url = None, token: Token = None, json: Json = False) -> None:
    """Show a run and its answer."""
    with host(url, token, say=not json) as client:
        _show(client.request("GET", _path(run_id)), json=json)


@app.command()
def wait(
    run_id: RunId,
    timeout: Annotated[str | None, typer.Option(help="Longest wait, such as 90s or 2h.")] = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Wait until a run, and what continues it, has ended, and show its answer."""
    left = None if timeout is None else milliseconds(timeout, "--timeout")
    with host(url, token, say=not json) as client:
        run = _waited(client, run_id, left)
    _show(run, json=json)
    raise SystemExit(0 if run["status"] == "success" else 1)


@app.command()
def cancel(run_id: RunId, url: Url = None, token: Token = None, json: Json = False) -> None:
    """Stop a run; its finished steps are kept."""
    with host(url, token, say=not json) as client:
        asked = client.request("POST", f"{_path(run_id)}/cancel")
    tell(asked, f"Cancelling {shown(asked['run_id'])}.", json=json)


def _waited(client: HostClient, run_id: str, left: int | None) -> dict[str, Any]:
    while True:
        now = WAIT_MS if left is None else min(left, WAIT_MS)
        params = {"wait_ms": str(now), "chain": "true"}
        began = time.monotonic()
        run: dict[str, Any] = client.request("GET", _path(run_id), params=params, timeout=None)
        left = None if left is None else left - now
        if run["status"] != "running" or left == 0:
            return run
        # A host that has too many who wait, or stops, answers at once.
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))


def _show(run: dict[str, Any], *, json: bool) -> None:
    if json:
        print_json(run)
        return
    out.print(f"{shown(run['run_id'])}: {shown(_state(run))}, {_took(run)}", soft_wrap=True)
    answer = run["answer"] or {}
    out.print(escape(safe(str(answer.get("result") or run["error"] or ""))), soft_wrap=True)


def _state(run: dict[str, Any]) -> str:
    return f"{run['status']} ({run['code']})" if run.get("code") else str(run["status"])


def _took(run: dict[str, Any]) -> str:
    return "-" if run["duration_ms"] is None else f"{run['duration_ms'] / 1000:.1f}s"


def _path(run_id: str) -> str:
    return f"/runs/{quote(run_id, safe='')}"
