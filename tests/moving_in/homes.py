"""Homes of the two systems that people come from, written after their formats, with every kind of record."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

BREAKCAFE = """
CREATE TABLE conversations (id TEXT PRIMARY KEY, session_id TEXT, last_assistant_uuid TEXT,
    created_at TEXT NOT NULL, last_activity TEXT NOT NULL, message_count INTEGER NOT NULL DEFAULT 0,
    status TEXT NOT NULL DEFAULT 'idle');
CREATE TABLE messages (id TEXT PRIMARY KEY, conversation_id TEXT NOT NULL, role TEXT NOT NULL, sender TEXT,
    sender_name TEXT, content TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE outbound_messages (id INTEGER PRIMARY KEY AUTOINCREMENT, conversation_id TEXT NOT NULL,
    text TEXT NOT NULL, sender TEXT, created_at TEXT NOT NULL, delivered INTEGER NOT NULL DEFAULT 0);
CREATE TABLE scheduled_tasks (id TEXT PRIMARY KEY, conversation_id TEXT NOT NULL, prompt TEXT NOT NULL,
    schedule_type TEXT NOT NULL, schedule_value TEXT NOT NULL, context_mode TEXT NOT NULL DEFAULT 'isolated',
    next_run TEXT, last_run TEXT, last_result TEXT, status TEXT NOT NULL DEFAULT 'active',
    created_at TEXT NOT NULL);
CREATE TABLE task_run_logs (id INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL, run_at TEXT NOT NULL,
    duration_ms INTEGER NOT NULL, status TEXT NOT NULL, result TEXT, error TEXT);
"""
BORN = "2026-03-01T08:00:00.000Z"
TASKS = (
    ("t-cron", "conv-1", "say moo", "cron", "0 9 * * *", "group", "2027-03-02T08:00:00.000Z", "active"),
    ("t-fast", "conv-1", "tick", "interval", "250", "isolated", "2027-03-02T08:00:00.000Z", "paused"),
    ("t-once", "conv-1", "wake", "once", "2027-03-02T09:00:00", "isolated", None, "completed"),
    ("t-bad", "conv-1", "never", "cron", "61 * * * *", "isolated", None, "active"),
    ("t-lone", "gone", "lost", "interval", "5000", "isolated", None, "active"),
)
SKILL = "---\nname: bake\ndescription: Bakes.\n---\nFlour."


def execute(home: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(home / "store" / "messages.db")) as connection, connection:
        connection.execute(statement, values)


def say(home: Path, number: int, role: str, text: str, who: str | None = None) -> None:
    moment = f"2026-03-01T08:00:{number:02d}.000Z"
    values = (f"m{number}", "conv-1", role, who, who, text, moment)
    execute(home, "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)", *values)


def breakcafe(home: Path) -> Path:
    """Make one; conversation conv-1 has four messages, one task is of each kind."""
    (home / "store").mkdir(parents=True)
    with closing(sqlite3.connect(home / "store" / "messages.db")) as connection:
        connection.executescript(BREAKCAFE)
    for name in ("conv-1", "task-t1-0b2f"):
        execute(home, "INSERT INTO conversations VALUES (?, 's', 'u', ?, ?, 4, 'running')", name, BORN, BORN)
    for task in TASKS:
        columns = "id, conversation_id, prompt, schedule_type, schedule_value, context_mode, next_run, status"
        places = ", ".join("?" * 9)
        execute(home, f"INSERT INTO scheduled_tasks ({columns}, created_at) VALUES ({places})", *task, BORN)
    execute(home, "INSERT INTO task_run_logs VALUES (1, 't-cron', ?, 1500, 'success', 'moo', NULL)", BORN)
    for number, text, delivered in ((1, "not yet heard", 0), (2, "heard", 1)):
        values = (number, text, BORN, delivered)
        execute(home, "INSERT INTO outbound_messages VALUES (?, 'conv-1', ?, NULL, ?, ?)", *values)
    say(home, 1, "user", "my cat is called <Tom>", "anna")
    say(home, 2, "assistant", "Hello Anna")
    say(home, 3, "system", "a note of the system")
    say(home, 4, "user", "and my dog Rex")
    write(
        home / "memory",
        {
            "CLAUDE.md": "Be kind.",
            "notes/today.md": "milk",
            ".claude/settings.json": "{}",
            ".claude/skills/bake/SKILL.md": SKILL,
        },
    )
    (home / "memory" / "away").symlink_to("/etc/passwd")
    (home / ".env").write_text("ANTHROPIC_API_KEY=sk-ant-secret-value\nSTORE_DIR=/data/store\n# note\n")
    return home


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


CALL = {"id": "c1", "type": "function", "function": {"name": "exec", "arguments": "{}"}}
MESSAGES = (
    {"role": "user", "content": "what is 2+2", "created_at": "2026-03-01T08:00:00.123456789+01:00"},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "created_at": "2026-03-01T08:00:01+01:00"},
    {"role": "tool", "content": "4", "tool_call_id": "c1"},
    {"role": "assistant", "content": "It is 4."},
)
CONFIG = {
    "version": 3,
    "agents": {
        "defaults": {
            "workspace": "~/.picoclaw/workspace",
            "restrict_to_workspace": True,
            "model_name": "sonnet",
            "max_tool_iterations": 20,
        }
    },
    "model_list": [
        {
            "model_name": "gpt",
            "model": "openai/gpt-5.4",
            "api_keys": ["sk-o"],
            "api_base": "https://o.example",
        },
        {"model_name": "sonnet", "model": "anthropic/claude-sonnet-5-5", "api_base": "https://a.example/v1"},
        {"model_name": "sonnet", "model": "anthropic/claude-sonnet-5-5", "api_keys": ["sk-ant-two"]},
        {"model_name": "deep", "model": "deepseek/deepseek-chat", "api_base": "https://api.deepseek.com/v1"},
    ],
    "channel_list": {
        "telegram": {"enabled": False, "allow_from": ["42"], "settings": {"token": "1:abc"}},
        "discord": {"enabled": True, "type": "discord"},
    },
    "tools": {
        "mcp": {"servers": {"notes": {"command": "notes-mcp", "args": [], "env": {"KEY": "hidden-1"}}}}
    },
    "heartbeat": {"enabled": False, "interval": 30},
    "voice": {"model_name": ""},
}
AT = 1_900_000_000_000
JOBS = (
    {
        "id": "j1",
        "enabled": True,
        "schedule": {"kind": "cron", "expr": "0 9 * * *", "tz": "Europe/Berlin"},
        "payload": {"kind": "agent_turn", "message": "tell the news", "channel": "telegram", "to": "42"},
        "state": {"nextRunAtMs": AT},
        "createdAtMs": 1_700_000_000_000,
    },
    {
        "id": "j2",
        "enabled": False,
        "schedule": {"kind": "every", "everyMs": 60_000},
        "payload": {"message": "tick", "command": "date", "channel": "discord", "to": "7"},
    },
    {"id": "j3", "enabled": True, "schedule": {"kind": "at", "atMs": AT}, "payload": {"message": "wake up"}},
    {"id": "j4", "enabled": True, "schedule": {"kind": "moon"}, "payload": {}},
)


def sipeed(home: Path) -> Path:
    """Make one: a Telegram chat, an unknown channel's, a session as it was before, three good jobs."""
    lines = "\n".join(json.dumps(message) for message in MESSAGES) + "\n"
    scope = {"version": 1, "channel": "telegram", "values": {"chat": "direct:42"}}
    meta = {
        "key": "sk_v1_aa",
        "summary": "sums",
        "skip": 2,
        "scope": scope,
        "updated_at": "2026-03-01T09:00:00Z",
    }
    old = {"key": "agent:main:main", "messages": MESSAGES, "created": "2026-01-01T00:00:00Z"}
    write(
        home / "workspace",
        {
            "sessions/sk_v1_aa.jsonl": lines,
            "sessions/sk_v1_aa.meta.json": json.dumps(meta),
            "sessions/sk_v1_bb.jsonl": lines,
            "sessions/agent_main_main.json": json.dumps(old),
            "SOUL.md": "calm",
            "AGENT.md": "You are Pico.",
            "memory/MEMORY.md": "likes tea",
            "memory/202603/20260301.md": "a day",
            "skills/bake/SKILL.md": SKILL,
            "cron/jobs.json": json.dumps({"version": 1, "jobs": JOBS}),
            "state/state.json": "{}",
        },
    )
    (home / "config.json").write_text(json.dumps(CONFIG))
    (home / ".security.yml").write_text('model_list:\n  "sonnet:0":\n    api_keys: ["sk-ant-one"]\n')
    return home
