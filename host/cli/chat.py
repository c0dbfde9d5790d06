"""``picoclaw chat``: a conversation with a running host."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape

from host.agent.text import MarkerFilter
from host.cli.client import HostClient, HostFault, Token, Url, host, surroundings
from host.cli.terminal import err, fail, out, safe, set_in, short, shown
from shared import jsons
from shared.lines import one_line
from shared.settings import SettingsError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

HELP: Final = """  /new     start a new conversation
  /tasks   show the scheduled tasks
  /usage   show what this session has used
  /resume  go on with a run that paused at its budget: /resume 20000
  /help    show this
  /quit    leave (or Ctrl-D)
  Ctrl-C   cancel the running answer; Esc Enter puts a line break into a message"""

WIDTH: Final = 72
"""Of what a tool was given, or gave."""


class Chat:
    """One person's session: a conversation that goes on until ``/new``."""

    def __init__(self, client: HostClient, conversation_id: str | None, *, lively: bool) -> None:
        self._client = client
        self._lively = lively
        self.conversation_id = conversation_id
        self.used: dict[str, int] = {}

    def say(self, message: str) -> bool:
        """Send a message and show the run to its end; return whether it ended well."""
        body: dict[str, Any] = {"message": message}
        if self.conversation_id:
            body["conversation_id"] = self.conversation_id
        return self._run("/chat", body)

    def resume(self, tokens: str) -> bool:
        """Go on with a run that paused at its budget; return whether it ended well."""
        if not (self.conversation_id and tokens.isascii() and tokens.isdigit() and int(tokens)):
            err.print("Say how many tokens the paused run may use: /resume 20000")
            return False
        return self._run(f"/chat/{self.conversation_id}/resume", {"allow_tokens": int(tokens)})

    def _run(self, path: str, body: dict[str, Any]) -> bool:
        view = RunView(lively=self._lively)
        body = {**body, "stream": True, "show_tool_use": self._lively}
        with self._cancelled_by_ctrl_c(view):
            try:
                for event, data in self._client.events(body, path):
                    view.show(event, data)
            finally:
                view.end()
        self.conversation_id = view.conversation_id or self.conversation_id
        self._count(view)
        if view.error or view.done is None:
            err.print(f"[red]{shown(view.error or 'The stream ended before the answer did.')}[/]")
        return view.error is None and view.done is not None

    def command(self, line: str) -> bool:
        """Obey a line that starts with a slash; return whether the session goes on."""
        name, _, rest = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        commands: dict[str, Callable[[], object]] = {
            "/new": self._begin_anew,
            "/tasks": self._show_tasks,
            "/usage": self._show_usage,
            "/resume": lambda: self.resume(rest.strip()),
            "/help": lambda: out.print(HELP),
        }
        commands.get(name, lambda: err.print(f"There is no {shown(name)}; /help lists what there is."))()
        return True

    def _begin_anew(self) -> None:
        self.conversation_id = None
        out.print("[dim]A new conversation begins.[/]")

    def _show_tasks(self) -> None:
        from host.cli.tasks import tasks_table

        out.print(tasks_table(list(self._client.pages("/tasks", "tasks"))))

    def _show_usage(self) -> None:
        if not self.used:
            out.print("Nothing used in this session yet.")
        for name, count in self.used.items():
            out.print(f"  {name.replace('_', ' '):<30}{count:>12,}")

    def _count(self, view: RunView) -> None:
        for name, count in ((view.done or {}).get("usage") or {}).items():
            self.used[name] = self.used.get(name, 0) + int(count)

    @contextmanager
    def _cancelled_by_ctrl_c(self, view: RunView) -> Iterator[None]:
        """Make Ctrl-C cancel the run, whose end then comes by the stream; a second one leaves it alone."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            err.print("[dim]cancelling…[/]")
            threading.Thread(target=self._cancel, args=(view,), daemon=True).start()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        except KeyboardInterrupt:
            view.error = "Left the run to itself."
        finally:
            signal.signal(signal.SIGINT, before)

    def _cancel(self, view: RunView) -> None:
        if not view.conversation_id:
            return
        try:
            with HostClient(self._client.target) as client:
                client.request("POST", f"/chat/{view.conversation_id}/cancel")
        except HostFault as fault:
            if fault.status != 409:  # it has ended meanwhile
                err.print(f"[red]{shown(str(fault))}[/]")


class RunView:
    """Shows one run's events.

    ``lively``: for a person at a terminal, with tools and messages as they come. Otherwise only the answer,
    and messages, are written.
    """

    def __init__(self, *, lively: bool) -> None:
        self._lively = lively
        self._column_zero = True
        self._unmarked = MarkerFilter("")
        self.conversation_id = ""
        self.run_id = ""
        self.done: dict[str, Any] | None = None
        self.error: str | None = None

    def show(self, event: str, data: dict[str, Any]) -> None:
        """Show one event; unknown ones are left out."""
        handler = getattr(self, f"_{event}", None)
        if handler is not None:
            handler(data)

    def end(self) -> None:
        """Finish the line that is being written."""
        self._write(self._unmarked.flush())
        self._line_start()

    def _start(self, data: dict[str, Any]) -> None:
        self.conversation_id = str(data.get("conversation_id", ""))
        self.run_id = str(data.get("run_id", ""))
        # It is for programs: they read of it in the answer.
        self._unmarked = MarkerFilter(str(data.get("session_end_marker") or ""))

    def _chunk(self, data: dict[str, Any]) -> None:
        self._write(self._unmarked.feed(str(data.get("text", ""))))

    def _write(self, text: str) -> None:
        text = safe(text)
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._column_zero = text.endswith("\n")

    def _thinking(self, data: dict[str, Any]) -> None:
        if self._lively:
            err.print(f"[dim italic]{escape(safe(str(data.get('text', ''))))}[/]", end="")

    def _tool_use(self, data: dict[str, Any]) -> None:
        self._note(f"[cyan]→ {shown(str(data.get('tool', '')))}[/] [dim]{_arguments(data.get('input'))}[/]")

    def _tool_result(self, data: dict[str, Any]) -> None:
        mark = "[red]✗[/]" if data.get("is_error") else "[green]✓[/]"
        preview = shown(short(str(data.get("preview", "")), WIDTH))
        self._note(f"{mark} {shown(str(data.get('tool', '')))} [dim]{preview}[/]")

    def _compaction(self, data: dict[str, Any]) -> None:
        self._note("[dim]… older messages were shortened for the model[/]")

    def _message(self, data: dict[str, Any]) -> None:
        self._line_start()
        sender = one_line(str(data.get("sender") or "message"))
        text = self._unmarked.without(str(data.get("text", "")))
        sys.stdout.write(f"[{sender}] {set_in(text)}\n")
        sys.stdout.flush()

    def _done(self, data: dict[str, Any]) -> None:
        self.done = data
        if data.get("status") != "success":
            self.error = str(data.get("error") or data.get("status"))

    def _error(self, data: dict[str, Any]) -> None:
        self.error = str(data.get("error", "the run failed"))

    def _note(self, markup: str) -> None:
        if self._lively:
            self._line_start()
            err.print(f"  {markup}", overflow="ellipsis", no_wrap=True)

    def _line_start(self) -> None:
        if not self._column_zero:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._column_zero = True


def _arguments(value: object) -> str:
    if not isinstance(value, dict) or not value:
        return ""
    if len(value) == 1:
        (only,) = value.values()
        return shown(short(only if isinstance(only, str) else jsons.dumps(only), WIDTH))
    return shown(short(jsons.dumps(value), WIDTH))


def chat(
    message: Annotated[str | None, typer.Argument(help="Say this and leave.")] = None,
    conversation: Annotated[str | None, typer.Option(help="Go on with this conversation.")] = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Talk to a running host."""
    with host(url, token) as client:
        person = message is None and sys.stdin.isatty()
        session = Chat(client, conversation, lively=person or err.is_terminal)
        if person:
            _converse(session, str(client.target))
        elif not session.say(message or _piped()):
            raise SystemExit(1)


def _piped() -> str:
    # As with arguments: what is not UTF-8 is refused where it is sent.
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").strip()
    return text or fail("There is nothing to say: standard input is empty.")


def _converse(session: Chat, target: str) -> None:
    out.print(f"[dim]Talking to {shown(target)}. /help shows the commands, Ctrl-D leaves.[/]")
    prompt = _prompt()
    while True:
        try:
            line = prompt.prompt("› ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if not _obeyed(session, line):
            return


def _obeyed(session: Chat, line: str) -> bool:
    """Do what a line says; return whether to go on."""
    try:
        if line.startswith("/"):
            return session.command(line)
        if line:
            session.say(line)
    except HostFault as fault:
        err.print(f"[red]{shown(str(fault))}[/]")
    return True


def _prompt() -> PromptSession[str]:
    """Return a line editor with a history of its own, which only this user can read."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history: History
    try:
        path = Path(surroundings(os.environ)["PICOCLAW_HOME"]) / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        history = FileHistory(str(path))
    except (OSError, SettingsError):
        history = InMemoryHistory()
    return PromptSession(history=history, key_bindings=bindings)
