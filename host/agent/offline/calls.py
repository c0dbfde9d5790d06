"""From a wish to the tool call that grants it, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from host.agent.offline.wishes import (
    MEMORY_FILE,
    Append,
    CancelTask,
    ListFiles,
    ListTasks,
    Read,
    Recall,
    Remember,
    Run,
    Schedule,
    Send,
    Wish,
    Write,
)

_TASK_TOOLS: Final = "mcp__picoclaw__"
_MAX_INLINE: Final = 120


@dataclass(frozen=True, slots=True)
class Call:
    """A tool by the name it is offered under, with its input; ``to`` and ``done`` say it in words."""

    tool: str
    input: dict[str, Any]
    to: str
    done: str


def call_of(wish: Wish) -> Call | None:
    """Return the call that grants the wish, None if it takes no tool."""
    match wish:
        case Remember(text):
            note = {"path": MEMORY_FILE, "content": f"- {text}\n"}
            return Call("append_file", note, f"note that in {MEMORY_FILE}", f"I noted it in {MEMORY_FILE}")
        case Run(command):
            return Call("exec", {"command": command}, f"run {code(command)}", f"I ran {code(command)}")
        case Write(text, path, overwrite):
            content = {"path": path, "content": text} | ({"overwrite": True} if overwrite else {})
            return Call("write_file", content, f"write {code(path)}", f"I wrote {code(path)}")
        case Append(text, path):
            added = {"path": path, "content": text}
            return Call("append_file", added, f"add to {code(path)}", f"I added a line to {code(path)}")
        case Read(path):
            return Call("read_file", {"path": path}, f"read {code(path)}", f"{code(path)} reads")
        case ListFiles(path):
            return Call("list_dir", {"path": path}, f"list {code(path)}", f"{code(path)} holds")
        case Recall(notes=True):
            return Call(
                "read_file", {"path": MEMORY_FILE}, f"read {MEMORY_FILE}", f"My notes in {MEMORY_FILE} say"
            )
    return _task_call(wish)


def _task_call(wish: Wish) -> Call | None:
    match wish:
        case Schedule(prompt, when):
            task = {"prompt": prompt, "schedule_type": when.kind, "schedule_value": when.value}
            task |= {"timezone": when.timezone} if when.timezone else {}
            return _task("schedule_task", task, f"schedule {code(prompt)}", f"I scheduled {code(prompt)}")
        case ListTasks():
            return _task("list_tasks", {}, "list the tasks", "The tasks are")
        case CancelTask(task_id):
            return _task(
                "cancel_task", {"task_id": task_id}, f"cancel {code(task_id)}", f"I cancelled {code(task_id)}"
            )
        case Send(text):
            return _task("send_message", {"text": text}, "send the message", "I sent the message")
    return None


def _task(name: str, arguments: dict[str, Any], to: str, done: str) -> Call:
    return Call(_TASK_TOOLS + name, arguments, to, done)


def code(text: str) -> str:
    """Return the text as inline code, on one line and not for ever."""
    line = " ".join(text.split()).replace("`", "'")
    return f"`{line}`" if len(line) <= _MAX_INLINE else f"`{line[:_MAX_INLINE]}…`"
