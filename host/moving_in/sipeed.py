"""A home of sipeed/picoclaw: ``workspace/`` with sessions, tasks and memory, and its settings.

Formats: its pkg/memory/jsonl.go and pkg/session (conversations), pkg/cron/service.go (tasks), pkg/config.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from host.moving_in import sipeed_settings
from host.moving_in.arrivals import (
    Arrivals,
    Broken,
    Row,
    an_object,
    derived_id,
    instant,
    lines,
    message,
    read_json,
    record,
)
from shared.clock import iso
from shared.ids import CONVERSATION, MESSAGE, TASK
from shared.settings.leaves import get
from shared.values import Role

MACHINERY: Final = frozenset({"sessions", "cron", "state", "state.json", "memory"})
"""What of the workspace isn't an agent's file; ``memory`` has a place of its own here."""
TELEGRAM: Final = "telegram"
PRIVATE: Final = "direct"
KINDS: Final = {"cron": "cron", "every": "interval", "at": "once"}


@dataclass(frozen=True, slots=True)
class Chat:
    """Where a session was held: the channel, and its chat, "" where that isn't known."""

    channel: str = ""
    chat_id: str = ""
    private: bool = True

    @property
    def is_telegram(self) -> bool:
        return self.channel == TELEGRAM and self.chat_id != ""


def read(home: Path, timezone: str, main: str, now: int) -> Arrivals:
    """Return what moves in; ``main`` is the main conversation's id here. Raises Broken."""
    arrivals = Arrivals()
    config = sipeed_settings.take(home, arrivals)
    workspace = _workspace(home, config)
    if not config and not workspace.is_dir():
        raise Broken(f"{home}: neither config.json nor workspace/, so no home of sipeed/picoclaw")
    for session in _sessions(workspace / "sessions"):
        with record(str(session.path)):
            _conversation(session, arrivals, timezone, main)
    jobs = workspace / "cron" / "jobs.json"
    if jobs.is_file():
        with record(str(jobs)):
            for job in an_object(read_json(jobs), str(jobs)).get("jobs") or ():
                _task(an_object(job, str(jobs)), jobs, arrivals, timezone=timezone, main=main, now=now)
    arrivals.add_files(workspace, leave=MACHINERY)
    memory = workspace / "memory"
    arrivals.add_files(memory, below="memory", leave=frozenset({"MEMORY.md"}))
    if (memory / "MEMORY.md").is_file():
        arrivals.add_file(memory / "MEMORY.md", "MEMORY.md")
        arrivals.changed.append(f"{memory / 'MEMORY.md'}: lies at the top of the workspace here")
    return arrivals


def _workspace(home: Path, config: dict[str, Any]) -> Path:
    """Return the folder that the configuration names if it is there; the home's own moved with it."""
    named = get(config, sipeed_settings.WORKSPACE)
    folder = Path(named).expanduser() if isinstance(named, str) and named else home
    return folder if not (home / "workspace").is_dir() and folder.is_dir() else home / "workspace"


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation as it lies there."""

    key: str
    path: Path
    meta: Row
    messages: list[Row]

    def chat(self) -> Chat:
        """Return where it was held, by its scope or by the names of earlier versions."""
        kind, _, chat_id = str(get(self.meta, ("scope", "values", "chat")) or "").partition(":")
        if chat_id:
            channel = str(get(self.meta, ("scope", "channel")) or "")
            return Chat(channel, chat_id.partition("/")[0], kind == PRIVATE)
        for alias in (self.key, *(self.meta.get("aliases") or ())):
            parts = str(alias).split(":")
            if parts[:1] == ["agent"] and len(parts) >= 5:  # agent:<id>:<channel>:<kind>:<chat>
                return Chat(parts[2], parts[-1], parts[-2] == PRIVATE)
        return Chat()

    def home(self, chat: Chat, main: str) -> str:
        """Return the conversation that it becomes; channels without their own fall back to the main one."""
        parts = self.key.split(":")
        if len(parts) == 3 and parts[0] == "agent" and parts[2] == "main":
            return main
        return f"{TELEGRAM}:{chat.chat_id}" if chat.is_telegram else derived_id(CONVERSATION, self.key)


def _sessions(folder: Path) -> Iterator[Session]:
    """Yield the sessions: lines beside a ``.meta.json``, or one ``.json`` as it was before."""
    for path in sorted(folder.glob("*.jsonl")):
        beside = path.with_suffix(".meta.json")
        meta = an_object(read_json(beside), str(beside)) if beside.is_file() else {}
        yield Session(str(meta.get("key") or path.stem), path, meta, [row for _, row in lines(path)])
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".meta.json") or path.with_suffix(".jsonl").exists():
            continue
        found = an_object(read_json(path), str(path))
        meta = {"created_at": found.get("created"), "updated_at": found.get("updated")}
        with record(str(path)):
            messages = [an_object(each, str(path)) for each in found.get("messages") or ()]
        yield Session(str(found.get("key") or path.stem), path, meta, messages)


def _conversation(session: Session, arrivals: Arrivals, timezone: str, main: str) -> None:
    chat, left, messages = session.chat(), 0, list[Row]()
    active = _time(session.meta.get("updated_at"), session.path)
    active = int(session.path.stat().st_mtime * 1000) if active is None else active
    last = created = _time(session.meta.get("created_at"), session.path) or active
    who = chat.chat_id if chat.private and chat.chat_id else "user"
    for place, each in enumerate(session.messages):
        text = each.get("content")
        last = _time(each.get("created_at"), session.path) or last
        if each.get("role") not in ("user", "assistant") or not isinstance(text, str) or not text.strip():
            left += 1
            continue
        role: Role = "assistant" if each["role"] == "assistant" else "user"
        message_id = derived_id(MESSAGE, session.key, str(place), role, text)
        messages.append(message(message_id, role, text, (who, who), last, timezone))
        left += len(each.get("tool_calls") or ()) + len(each.get("media") or ())
    if not messages:
        return
    home = session.home(chat, main)
    arrivals.add_conversation(home, messages, created, max(active, last))
    if chat.is_telegram:
        _enter(chat, home, arrivals)
    if left:
        arrivals.lost.append(f"{session.path}: {left} tool steps, pictures and notes of the system")
    if session.meta.get("summary"):
        arrivals.changed.append(f"{session.path}: its messages are taken whole, its summary is not")


def _enter(chat: Chat, conversation_id: str, arrivals: Arrivals) -> None:
    arrivals.add(
        "channel_chats",
        {
            "conversation_id": conversation_id,
            "channel": TELEGRAM,
            "chat_id": chat.chat_id,
            "current": 1,
            "private": int(chat.private),
            "sender_id": chat.chat_id if chat.private else "",
            "sender_name": "",
        },
    )


def _task(job: Row, path: Path, arrivals: Arrivals, *, timezone: str, main: str, now: int) -> None:
    name = f"{path}: job {job.get('id')}"
    schedule, payload, state = (job.get(part) or {} for part in ("schedule", "payload", "state"))
    kind = KINDS.get(str(schedule.get("kind")))
    if kind is None or not job.get("id"):
        arrivals.lost.append(f"{name}: no schedule of a known kind")
        return
    values = {"cron": "expr", "interval": "everyMs", "once": "atMs"}
    value = schedule.get(values[kind]) or ""
    prompt = str(payload.get("message") or job.get("name") or "")
    if payload.get("command"):
        arrivals.changed.append(f"{name}: its command is run by the agent now, in the sandbox")
        prompt = f"Run this command and say what it printed: {payload['command']}\n{prompt}".strip()
    arrivals.add_task(
        {
            "id": derived_id(TASK, str(job["id"])),
            "conversation_id": _owner(payload, main, arrivals, name, now),
            "prompt": prompt,
            "schedule_type": kind,
            "schedule_value": iso(int(value or 0)).removesuffix("Z") if kind == "once" else str(value),
            "timezone": str(schedule.get("tz") or ("UTC" if kind == "once" else timezone)),
            "context_mode": "group",
            "status": "active" if job.get("enabled") else "paused",
            "created_at": int(job.get("createdAtMs") or now),
            "last_run": state.get("lastRunAtMs") and int(state["lastRunAtMs"]),
        },
        next_run=state.get("nextRunAtMs") and int(state["nextRunAtMs"]),
        now=now,
    )


def _owner(payload: Row, main: str, arrivals: Arrivals, name: str, now: int) -> str:
    """Return the conversation that a task belongs to, which moves in with it if need be."""
    home, to = main, str(payload.get("to") or "")
    if payload.get("channel") == TELEGRAM and to:
        home = f"{TELEGRAM}:{to}"
    elif payload.get("channel"):
        arrivals.changed.append(f"{name}: answers in {main}, there is no {payload['channel']} here")
    if not arrivals.has_conversation(home):
        arrivals.add_conversation(home, [], now, now)
        if home != main:
            _enter(Chat(TELEGRAM, to, private=not to.startswith("-")), home, arrivals)
    return home


def _time(value: Any, path: Path) -> int | None:
    """Return an instant, None for none (Go writes the year 1 for it)."""
    return None if not value or str(value).startswith("0001") else instant(value, str(path))
