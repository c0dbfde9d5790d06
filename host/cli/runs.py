"""``picoclaw runs``, ``approvals`` and ``usage``: a host's runs, what they wait for, what they used."""

import time
from typing import Annotated, Any, Final, Literal

import typer
from rich.markup import escape
from rich.text import Text

from host.cli.client import HostClient, asking, at
from host.cli.terminal import Told, listing, local_time, milliseconds, safe, shown, took
from shared import jsons

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


approvals_app = typer.Typer(help="What waits for a person's word at a running host.", no_args_is_help=True)

Request = Annotated[str, typer.Argument(help="The request's id.")]


@approvals_app.command("list")
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


@approvals_app.command()
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


@approvals_app.command()
@asking
def deny(
    client: HostClient,
    request: Request,
    message: Annotated[str | None, typer.Option("--message", help="What the agent is told.")] = None,
) -> Told:
    """Deny a call, or leave a question without an answer."""
    return _answer(client, request, decision="deny", message=message)


@approvals_app.command()
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


BAR_WIDTH: Final = 32
EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


@asking
def usage(
    client: HostClient,
    by: Annotated[
        Literal["day", "conversation"],
        typer.Option(help="A bar for each day, or for each conversation of a day."),
    ] = "day",
    conversation: Annotated[str | None, typer.Option(help="Only this conversation, with its tasks.")] = None,
    rows: Annotated[int, typer.Option("--last", min=1, max=1000, help="How many bars.")] = 14,
) -> Told:
    """Show tokens and dollars used, newest day first (days are UTC)."""
    params = {"by": by, "limit": str(rows)}
    if conversation is not None:
        params["conversation_id"] = conversation
    used = client.request("GET", "/usage", params=params)["usage"]
    apart = any(row["conversation_id"] is not None for row in used)
    most = max((row["tokens"] for row in used), default=0)
    return listing(
        used,
        "Nothing used yet.",
        {
            "day": "day",
            **({"conversation": "conversation_id"} if apart else {}),
            "": lambda row: Text(bar(row["tokens"], most), style="cyan"),
            "tokens": lambda row: f"{row['tokens']:,}",
            "cost": lambda row: f"${row['dollars']:,.2f}",
            "runs": lambda row: f"{row['runs']:,}",
        },
    )


def bar(value: int, most: int) -> str:
    """Return a bar in eighths of a character, the longest for the most; what was used shows at least one."""
    if value <= 0 or most <= 0:
        return ""
    full, rest = divmod(max(1, round(value / most * BAR_WIDTH * 8)), 8)
    return EIGHTHS[8] * full + (EIGHTHS[rest] if rest else "")
