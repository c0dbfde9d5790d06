"""``picoclaw tasks``: the scheduled tasks of a running host."""

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, NoReturn

import httpx2
import typer
from rich.markup import escape

from host.cli.client import HostClient, Json, Token, Url, asking, at, host, host_settings
from host.cli.terminal import (
    UNITS_MS,
    HostFault,
    Told,
    fail,
    listing,
    local_time,
    milliseconds,
    out,
    print_json,
    safe,
    set_in,
    short,
    shown,
    tell,
    took,
)

ROOM_FOR_CONVERSATIONS: Final = 150

app = typer.Typer(help="The scheduled tasks of a running host.", no_args_is_help=True)

TaskId = Annotated[str, typer.Argument(help="The task's id.")]


@app.command()
def check(
    most: Annotated[int, typer.Option("--max", min=1, help="Most tasks to run.")] = 1,
    every: Annotated[
        float | None, typer.Option(min=1, max=86400, help="Go on for ever, once in so many seconds.")
    ] = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Run the tasks that are due and write what came of them as JSON."""
    with host(url, token) as client:
        if every is None:
            _check(client, most)
        else:
            _for_ever(client, most, every)


def _for_ever(client: HostClient, most: int, every: float) -> NoReturn:
    while True:
        due = time.monotonic() + every
        try:
            _check(client, most)
        except HostFault as fault:
            if fault.status == httpx2.codes.UNAUTHORIZED:
                raise  # it will never get in: whoever supervises it need not try again
            # A host that starts, drains or restarts is asked again next time.
            print_json({"level": "warning", "logger": "picoclaw.tick", "message": str(fault)})
        sys.stdout.flush()
        time.sleep(max(0.0, due - time.monotonic()))


def _check(client: HostClient, most: int) -> None:
    # How long a task takes is the host's to bound.
    print_json(client.request("POST", "/task/check", {"max": most}, timeout=None))


@app.command("list")
@asking
def list_tasks(client: HostClient) -> Told:
    """List the tasks with their next run."""
    return listed(client)


@app.command()
def add(
    prompt: Annotated[str, typer.Argument(help="What the agent is told each time.")],
    cron: Annotated[str | None, typer.Option(help='Five fields, such as "0 9 * * MON-FRI".')] = None,
    every: Annotated[str | None, typer.Option(help="A span, such as 90s, 15m, 2h or 1d.")] = None,
    at: Annotated[str | None, typer.Option(help="A local time, such as 2027-03-01T09:00.")] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA zone; the host's own otherwise.")] = None,
    conversation: Annotated[str | None, typer.Option(help="The conversation it belongs to.")] = None,
    group: Annotated[bool, typer.Option("--group", help="Run inside that conversation.")] = False,
    catch_up: Annotated[str, typer.Option(help="What missed slots get: skip, once or all.")] = "once",
    deliver: Annotated[
        str | None, typer.Option(help="answer: final answers reach people. none: not.")
    ] = None,
    ends_at: Annotated[str | None, typer.Option(help="No run after this local time or date.")] = None,
    max_runs: Annotated[int | None, typer.Option(min=1, help="End after so many runs.")] = None,
    run_if_past: Annotated[bool, typer.Option("--run-if-past", help="Run at once if --at is past.")] = False,
    task_id: Annotated[str | None, typer.Option("--id", help="An id of your own.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Only show the next five runs.")] = False,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Add a task; with --explain only say when it would run."""
    schedule_type, schedule_value = _schedule(cron, every, at)
    body = {
        "id": task_id,
        "prompt": prompt,
        "schedule_type": schedule_type,
        "schedule_value": schedule_value,
        "timezone": timezone,
        "context_mode": "group" if group else "isolated",
        "conversation_id": conversation,
        "catch_up": catch_up,
        "deliver": deliver,
        "ends_at": ends_at,
        "max_runs": max_runs,
        "run_if_past": run_if_past or None,
    }
    if explain:
        _explain(body, json=json)
        return
    with host(url, token, say=not json) as client:
        task = client.request(
            "POST", "/task", {name: item for name, item in body.items() if item is not None}
        )
    next_run = shown(local_time(task.get("next_run")))
    tell(task, f"Added [bold]{shown(task['id'])}[/]; next run {next_run}.", json=json)


@app.command()
@asking
def pause(client: HostClient, task_id: TaskId) -> Told:
    """Keep a task from running."""
    return _become(client, task_id, "paused")


@app.command()
@asking
def resume(client: HostClient, task_id: TaskId) -> Told:
    """Let a paused task run again."""
    return _become(client, task_id, "active")


@app.command()
@asking
def run(client: HostClient, task_id: TaskId) -> Told:
    """Run a task now, beside its schedule, and show what came of it."""
    outcome = client.request("POST", "/task/trigger", {"task_id": task_id}, timeout=None)
    return Told(outcome, "\n".join(_words(outcome)), ok=outcome.get("status") == "success")


@app.command()
@asking
def rm(client: HostClient, task_id: TaskId) -> Told:
    """Delete a task."""
    client.request("DELETE", at("task", task_id))
    return Told({"deleted": task_id}, f"Deleted {shown(task_id)}.")


@app.command()
@asking
def log(client: HostClient, task_id: TaskId) -> Told:
    """Show a task's runs, the newest first."""
    return listing(
        list(client.pages(at("task", task_id, "runs"), "runs")),
        "No runs yet.",
        {
            "started": lambda run: local_time(run["started_at"]),
            "status": "status",
            "took": took,
            "result": lambda run: short(run["error"] or run["result"] or "", 80),
        },
    )


def listed(client: HostClient) -> Told:
    """Return the tasks, times in this machine's zone."""
    wide = out.width >= ROOM_FOR_CONVERSATIONS
    return listing(
        list(client.pages("/tasks", "tasks")),
        "No tasks.",
        {
            "id": "id",
            "schedule": _schedule_words,
            "status": lambda task: "overdue" if task.get("overdue") else task["status"],
            "next run": lambda task: local_time(task["next_run"]),
            **({"conversation": "conversation_id"} if wide else {}),
            "prompt": lambda task: short(task["prompt"], 48),
        },
    )


def _become(client: HostClient, task_id: str, status: str) -> Told:
    task = client.request("PUT", at("task", task_id), {"status": status})
    next_run = local_time(task["next_run"])
    return Told(task, f"{shown(task_id)} is {shown(task['status'])}; next run {shown(next_run)}.")


def _schedule(cron: str | None, every: str | None, at: str | None) -> tuple[str, str]:
    interval = None if every is None else str(milliseconds(every, "--every"))
    said = {"cron": cron, "interval": interval, "once": at}
    given = [(kind, value) for kind, value in said.items() if value is not None]
    if len(given) != 1:
        fail("Give one of --cron, --every and --at.", 2)
    return given[0]


def _explain(asked: Mapping[str, Any], *, json: bool) -> None:
    from shared import schedules, task_edits
    from shared.clock import iso, now_ms

    now, zone = now_ms(), asked["timezone"] or host_settings().timezone
    schedule = schedules.parse(asked["schedule_type"], asked["schedule_value"], zone)
    task_edits.first_slot(schedule, now, run_if_past=bool(asked["run_if_past"]))
    end = task_edits.checked_ends_at(asked["ends_at"], zone, now)
    slots = schedules.upcoming(schedule, now, min(5, asked["max_runs"] or 5))
    instants = [iso(max(slot, now)) for slot in slots if end is None or slot <= end]
    tell(instants, "\n".join(map(local_time, instants)) or "It never runs.", json=json)


def _schedule_words(task: dict[str, Any]) -> str:
    kind, value = task.get("schedule_type"), str(task.get("schedule_value", ""))
    words = (
        f"every {_span(int(value))}"
        if kind == "interval"
        else f"{value} {task.get('timezone') or ''}".strip()
    )
    if task.get("max_runs"):
        words += f", {task.get('runs_begun')} of {task['max_runs']} runs"
    return f"{words}, until {local_time(task['ends_at'])}" if task.get("ends_at") else words


def _span(span_ms: int) -> str:
    return next(f"{span_ms // size}{unit}" for unit, size in UNITS_MS.items() if span_ms % size == 0)


def _words(outcome: dict[str, Any]) -> Iterator[str]:
    for message in outcome.get("outbound_messages") or ():
        if message.get("text") != outcome.get("result"):
            yield f"[bold]message:[/] {escape(set_in(str(message.get('text', ''))))}"
    yield escape(safe(str(outcome.get("result") or outcome.get("error") or outcome.get("status"))))
