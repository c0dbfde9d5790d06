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

from host.cli.chat_view import RunView
from host.cli.client import HostClient, HostFault
from host.cli.terminal import err, fail, out, shown

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

HELP: Final = """  /new     start a new conversation
  /tasks   show the scheduled tasks
  /usage   show what this session has used
  /resume  go on with a run that paused at its budget: /resume 20000
  /help    show this
  /quit    leave (or Ctrl-D)
  Ctrl-C   cancel the running answer; Esc Enter puts a line break into a message"""


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
        from host.cli.tasks import print_tasks

        print_tasks(list(self._client.pages("/tasks", "tasks")))

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


def chat(
    message: Annotated[str | None, typer.Argument(help="Say this and leave.")] = None,
    conversation: Annotated[str | None, typer.Option(help="Go on with this conversation.")] = None,
    url: Annotated[str | None, typer.Option(help="Address of the host.")] = None,
    token: Annotated[str | None, typer.Option(help="API token (better in API_TOKEN).")] = None,
) -> None:
    """Talk to a running host."""
    try:
        with HostClient.found(url, token) as client:
            person = message is None and sys.stdin.isatty()
            session = Chat(client, conversation, lively=person or err.is_terminal)
            if person:
                _converse(session, client.target.url)
            elif not session.say(message or _piped()):
                raise SystemExit(1)
    except HostFault as fault:
        fail(str(fault))


def _piped() -> str:
    # As with arguments: what is not UTF-8 is refused where it is sent.
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").strip()
    return text or fail("There is nothing to say: standard input is empty.")


def _converse(session: Chat, url: str) -> None:
    out.print(f"[dim]Talking to {shown(url)}. /help shows the commands, Ctrl-D leaves.[/]")
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
        path = Path(os.environ.get("PICOCLAW_HOME") or "~/.picoclaw").expanduser() / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        history = FileHistory(str(path))
    except (OSError, RuntimeError):
        history = InMemoryHistory()
    return PromptSession(history=history, key_bindings=bindings)
