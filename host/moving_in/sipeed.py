"""A home of sipeed/picoclaw: ``workspace/`` with sessions, tasks and memory, and its settings.

Formats: its pkg/memory/jsonl.go and pkg/session (conversations), pkg/cron/service.go (tasks), pkg/config.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

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
    read_text,
    record,
)
from shared import jsons
from shared.clock import iso
from shared.ids import CONVERSATION, MESSAGE, TASK
from shared.settings.access import Telegram
from shared.settings.files import join_provider
from shared.settings.leaves import KeyPath, Tree, get, leaves, put
from shared.settings.models import ADDRESSES, ELSEWHERE, LOCAL, ModelEntry, split_model, unaddressed
from shared.settings.tools import McpServer
from shared.values import Role

MACHINERY: Final = frozenset({"sessions", "cron", "state", "state.json", "memory"})
"""What of the workspace isn't an agent's file; ``memory`` has a place of its own here."""
TELEGRAM: Final = "telegram"
PRIVATE: Final = "direct"
KINDS: Final = {"cron": ("cron", "expr"), "every": ("interval", "everyMs"), "at": ("once", "atMs")}
"""Their kinds of schedules: what they are here, and where their value stands."""


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
    config = take_settings(home, arrivals)
    own, named = home / "workspace", get(config, WORKSPACE)
    folder = Path(named).expanduser() if isinstance(named, str) and named else home
    workspace = own if own.is_dir() or not folder.is_dir() else folder  # the home's own moved with it
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
    active = _time(session.meta.get("updated_at"), session.path) or int(session.path.stat().st_mtime * 1000)
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
    kind, field = KINDS.get(str(schedule.get("kind")), ("", ""))
    if not kind or not job.get("id"):
        arrivals.lost.append(f"{name}: no schedule of a known kind")
        return
    value = schedule.get(field) or ""
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


WORKSPACE: Final = ("agents", "defaults", "workspace")
MODEL_NAME: Final = ("agents", "defaults", "model_name")
SERVERS: Final = ("tools", "mcp", "servers")
ALIKE: Final = ("agents", "tools", "heartbeat")
"""The sections whose keys mean the same here, as far as there are any."""
TOLD: Final = {"version", "model_list", "channel_list", "channels", *ALIKE}
UNUSED: Final = ("YOUR_", "sk-your", "sk-ant-your", "your-")
"""How the values of its sample file begin that stand for none."""


def take_settings(home: Path, arrivals: Arrivals) -> Tree:
    """Let the settings move in, and return the configuration as it was; raises Broken."""
    path = home / "config.json"
    if not path.is_file():
        return {}
    config, secrets = an_object(read_json(path), str(path)), _secrets(home / ".security.yml")
    arrivals.config["version"] = 3
    for leaf in leaves():
        if leaf.path[0] in ALIKE and leaf.path not in (WORKSPACE, MODEL_NAME, SERVERS):
            kind: Any = Annotated[leaf.field.annotation, leaf.field]
            _keep(arrivals, leaf.path, get(config, leaf.path), kind)
    _models(config, secrets, arrivals)
    for channels in ("channel_list", "channels"):
        _channels(channels, config, secrets, arrivals)
    for name, server in _named(get(config, SERVERS)):
        _server((*SERVERS, name), server, secrets, arrivals)
    if rest := sorted(name for name in config if name not in TOLD and not name.startswith("_")):
        arrivals.lost.append(f"{path}: {', '.join(rest)}: nothing here has these settings")
    if workspace := get(config, WORKSPACE):
        arrivals.changed.append(f"agents.defaults.workspace: the files of {workspace} move to MEMORY_DIR")
    return config


def _keep(arrivals: Arrivals, path: KeyPath, value: Any, kind: Any) -> bool:
    """Let a value move in if a start would take it; return whether it does."""
    if value is None:
        return False
    try:
        TypeAdapter(kind).validate_json(jsons.dump_bytes(value), strict=True)
    except (ValidationError, TypeError):
        arrivals.lost.append(f"{'.'.join(path)}: its value can't be used here")
        return False
    put(arrivals.config, path, value)
    return True


def _secrets(path: Path) -> Tree:
    if not path.is_file():
        return {}
    try:
        found = YAML(typ="safe").load(read_text(path))
    except (YAMLError, ValueError, RecursionError) as error:
        raise Broken(f"{path}: not YAML ({(str(error).splitlines() or [''])[0]})") from None
    return found if isinstance(found, dict) else {}


def _models(config: Tree, secrets: Tree, arrivals: Arrivals) -> None:
    kept, seen = list[Tree](), dict[str, int]()
    listed = config.get("model_list")
    for entry in listed if isinstance(listed, list) else ():
        join_provider(entry)
        name, model, base = (get(entry, (key,)) for key in ("model_name", "model", "api_base"))
        if not isinstance(name, str) or not isinstance(model, str) or not name or not model:
            arrivals.lost.append("model_list: an entry without model_name and model")
            continue
        number = seen[name] = seen.get(name, -1) + 1
        hidden = get(secrets, ("model_list", f"{name}:{number}")) or get(secrets, ("model_list", name))
        keys = _keys(entry) or _keys(hidden)
        provider, rest = split_model(model)
        if provider in ADDRESSES and provider not in LOCAL and base:
            arrivals.changed.append(f"model_list: {name} is asked at {ADDRESSES[provider]}")
            base = None
        foreign = provider in ELSEWHERE or (not provider and "/" in rest)
        if foreign or (not base and unaddressed(model, has_keys=bool(keys), general=None)):
            arrivals.lost.append(f"model_list: {name} ({model}) speaks another API than Messages")
            continue
        own = {"model_name": name, "model": model, **({"api_base": base} if base else {})}
        if not _keep(arrivals, ("model_list",), [*kept, own], tuple[ModelEntry, ...]):
            continue
        kept.append(own)
        if keys:
            place = f"{name}:{sum(each['model_name'] == name for each in kept) - 1}"
            put(arrivals.secrets, ("model_list", place, "api_keys"), keys)
    default = get(config, MODEL_NAME)
    if any(entry["model_name"] == default for entry in kept):
        put(arrivals.config, MODEL_NAME, default)
    elif default:
        arrivals.lost.append(f"agents.defaults.model_name: {default} isn't among the models that moved in")


def _channels(channels: str, config: Tree, secrets: Tree, arrivals: Arrivals) -> None:
    for name, channel in _named(config.get(channels)):
        if name == "telegram":
            kept = {key: channel[key] for key in ("enabled", "allow_from") if channel.get(key) is not None}
            _keep(arrivals, ("channels", "telegram"), kept, Telegram)
            sources = (get(secrets, (channels, name)), channel)
            tokens = [get(each, path) for each in sources for path in (("settings", "token"), ("token",))]
            if token := next(filter(_real, tokens), None):
                put(arrivals.secrets, ("channels", "telegram", "token"), token)
        elif channel.get("enabled"):
            arrivals.lost.append(f"{channels}.{name}: there is no such channel here")


def _server(place: KeyPath, server: Tree, secrets: Tree, arrivals: Arrivals) -> None:
    kept = {key: server[key] for key in ("enabled", "url", "command", "args") if server.get(key) is not None}
    kind = server.get("type") or ("stdio" if "command" in server else "sse")
    kept["type"] = "http" if kind == "streamable-http" else kind
    if not _keep(arrivals, place, kept, McpServer):
        return
    for key in ("headers", "env"):
        value = get(secrets, (*place, key)) or server.get(key)
        if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
            put(arrivals.secrets, (*place, key), value)
        elif value:
            arrivals.lost.append(f"{'.'.join(map(str, (*place, key)))}: not an object of texts")


def _keys(entry: Any) -> list[str]:
    keys = get(entry, ("api_keys",)) or [get(entry, ("api_key",))]
    return [key for key in keys if _real(key)] if isinstance(keys, list) else []


def _real(value: Any) -> bool:
    return isinstance(value, str) and value != "" and not value.startswith(UNUSED)


def _named(value: Any) -> list[tuple[str, Tree]]:
    pairs = value.items() if isinstance(value, dict) else ()
    return [(name, each) for name, each in pairs if isinstance(each, dict)]
