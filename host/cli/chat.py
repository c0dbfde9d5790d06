"""``picoclaw chat``: a conversation with a running host."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from host.cli.client import HostClient, Json, Token, Url, at, host, surroundings
from host.cli.run_view import AnswerWriter, MarkdownWriter, PlainWriter, RunView
from host.cli.runs import decided
from host.cli.terminal import HostFault, err, fail, local_time, out, print_json, short, shown, table
from shared import jsons
from shared.settings import SettingsError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

HELP: Final = """  /new     start a new conversation, with a first message: /new what is due today?
  /list    list the newest conversations, or those with a text: /list invoice
  /open    go on with a conversation, by the beginning of its id: /open 3fa8
  /tasks   show the scheduled tasks
  /usage   show what this session has used
  /resume  go on where a run ended without an answer; with tokens past a budget: /resume 20000
  /allow   allow the calls that wait for you here. A message answers a question
  /deny    deny them, and say why if you like: /deny use the copy instead
  /help    show this
  /quit    leave (or Ctrl-D)
  Ctrl-C   cancel the running answer; Esc Enter puts a line break into a message"""

MADE_ID: Final = re.compile(r"conv-([0-9a-f]{8})-[0-9a-f-]{27}")
"""An id that the host made; its first digits are enough to tell it apart."""
LISTED: Final = 20
RECALLED: Final = 6
"""Messages that are shown of a conversation that is opened."""


class Chat:
    """One person's session: a conversation that goes on until ``/new``."""

    def __init__(self, client: HostClient, conversation_id: str | None = None, *, lively: bool) -> None:
        self._client = client
        self._lively = lively
        self._writer: AnswerWriter = MarkdownWriter() if lively and out.is_terminal else PlainWriter()
        self.conversation_id = conversation_id
        self.used: dict[str, int] = {}
        self._seen: set[str] = set()
        """Calls that wait, and that the person has seen whole."""

    def say(self, message: str) -> bool:
        """Send a message, which answers or denies what waits; return whether its run ended well."""
        waits = {"deny_pending": True} if self._lively else {}
        return self._run("/chat", {**self._body(message), **waits})

    def say_for_programs(self, message: str) -> bool:
        """Send a message and write the host's answer as JSON; return whether the run ended well."""
        answer = self._client.request("POST", "/chat", self._body(message), timeout=None)
        print_json(answer)
        return bool(answer["status"] == "success")

    def _body(self, message: str) -> dict[str, Any]:
        of = {"conversation_id": self.conversation_id} if self.conversation_id else {}
        return {"message": message, **of}

    def resume(self, tokens: str = "") -> bool:
        """Go on where a run ended without an answer; return whether it ended well. Raises HostFault."""
        if not self.conversation_id:
            raise HostFault("There is no conversation here to go on with; /open one.")
        if tokens and not (tokens.isascii() and tokens.isdigit() and int(tokens)):
            raise HostFault("Say how many tokens the run may use, as a number: /resume 20000")
        body = {"allow_tokens": int(tokens)} if tokens else {}
        return self._run(at("chat", self.conversation_id, "resume"), body)

    def _decide(self, answer: dict[str, str | None]) -> None:
        """Answer all calls that wait here, and show how the run goes on; what nobody has seen here is shown
        before it can be allowed. Raises HostFault.
        """
        here = {"status": "pending", "kind": "approval", "conversation_id": self.conversation_id or ""}
        waits = list(self._client.pages("/approvals", "approvals", **here)) if self.conversation_id else []
        if not waits:
            raise HostFault("No call waits here.")
        unseen = [each for each in waits if each["id"] not in self._seen]
        if unseen and answer["decision"] == "allow":
            self._show(unseen)
            raise HostFault("This waits. /allow once more allows it, /deny denies it.")
        for each in waits:
            told = decided(self._client, each["id"], answer)
        if told["run_id"]:
            self._run(at("chat", str(self.conversation_id), "runs", told["run_id"], "events"), None)

    def _show(self, calls: list[dict[str, Any]]) -> None:
        for each in calls:
            for line in (each["tool"], *jsons.dumps(each["input"], indented=True).split("\n")):
                out.print(shown(line), soft_wrap=True)
            self._seen.add(each["id"])

    def _run(self, path: str, body: dict[str, Any] | None) -> bool:
        view = RunView(self._writer, lively=self._lively)
        if body is not None:
            body = {**body, "stream": True, "show_tool_use": self._lively}
        with self._cancelled_by_ctrl_c(view):
            try:
                for event, data in self._client.events(body, path):
                    view.show(event, data)
            finally:
                view.end()
        self.conversation_id = view.conversation_id or self.conversation_id
        self._seen |= view.whole
        self._count(view)
        if view.error or view.done is None:
            err.print(f"[red]{shown(view.error or 'The stream ended before the answer did.')}[/]")
        return view.error is None and view.done is not None

    def command(self, line: str) -> bool:
        """Obey a line that starts with a slash; return whether the session goes on."""
        name, *words = line.split(maxsplit=1)
        if name in ("/quit", "/exit"):
            return False
        alone: dict[str, Callable[[], object]] = {
            "/tasks": self._show_tasks,
            "/usage": self._show_usage,
            "/allow": lambda: self._decide({"decision": "allow"}),
            "/help": lambda: out.print(HELP),
        }
        with_words: dict[str, Callable[..., object]] = {
            "/new": self._begin_anew,
            "/list": self._list,
            "/open": self.open,
            "/resume": self.resume,
            "/deny": lambda *why: self._decide({"decision": "deny", "message": why[0] if why else None}),
        }
        if words and name in alone:
            raise HostFault(f"{name} takes no words, and did nothing.")
        if obeys := {**alone, **with_words}.get(name):
            obeys(*words)
        else:
            err.print(f"There is no {shown(name)}; /help lists what there is.")
        return True

    def open(self, wanted: str = "") -> None:
        """Go on with a conversation, and show how it ended; raises HostFault for none."""
        meant = self._meant(wanted)
        messages = self._client.pages(at("chat", meant, "messages"), "messages")
        newest = deque(messages, maxlen=RECALLED)
        self.conversation_id = meant
        for message in newest:
            self._writer.message(str(message["sender_name"]), str(message["content"]))

    def newest(self) -> str:
        """Return the conversation that was the last to have a message; raises HostFault for none."""
        for conversation in self._client.pages("/chat", "conversations"):
            if conversation["message_count"]:
                return str(conversation["conversation_id"])
        raise HostFault("There is no conversation yet to go on with.")

    def _meant(self, wanted: str) -> str:
        if not wanted:
            raise HostFault("Say which: /open and the beginning of an id that /list shows.")
        ids = [item["conversation_id"] for item in self._client.pages("/chat", "conversations")]
        found = [each for each in ids if each.startswith((wanted, f"conv-{wanted}"))]
        if wanted in found or not found:
            return wanted  # whole ids are the host's to find: /list leaves out those of tasks
        if len(found) > 1:
            raise HostFault(f"{wanted} is the beginning of {len(found)} ids: {', '.join(found[:LISTED])}")
        return str(found[0])

    def _list(self, search: str = "") -> None:
        found = self._client.pages("/chat", "conversations", **({"search": search} if search else {}))
        made = table("id", "last message", "messages", "title")
        for item in islice(found, LISTED):
            whole = item["conversation_id"]
            made.add_row(
                shown(MADE_ID.sub(r"\1", whole)),
                shown(local_time(item["last_activity"])),
                f"{item['message_count']:,}",
                shown(short(item["title"] or "", 48)),
                style="bold" if whole == self.conversation_id else "",
            )
        out.print(made if made.row_count else "No conversations.")

    def _begin_anew(self, message: str = "") -> None:
        self.conversation_id = None
        out.print("[dim]A new conversation begins.[/]")
        if message:
            self.say(message)

    def _show_tasks(self) -> None:
        from host.cli.tasks import listed

        out.print(listed(self._client).words)

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
            # Not here: a signal may come in the middle of a write, and none can begin in another.
            threading.Thread(target=self._cancel, args=(view,), daemon=True).start()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        except KeyboardInterrupt:
            view.error = "Left the run to itself."
        finally:
            signal.signal(signal.SIGINT, before)

    def _cancel(self, view: RunView) -> None:
        (out if out.is_terminal else err).print("[dim]cancelling…[/]")  # above what is being drawn
        if not view.conversation_id:
            return
        try:
            with HostClient(self._client.target) as client:
                client.request("POST", at("chat", view.conversation_id, "cancel"))
        except HostFault as fault:
            if fault.status != 409:  # it has ended meanwhile
                err.print(f"[red]{shown(str(fault))}[/]")


def chat(
    message: Annotated[str | None, typer.Argument(help="Say this and leave.")] = None,
    conversation: Annotated[str | None, typer.Option(help="Go on with this conversation.")] = None,
    newest: Annotated[bool, typer.Option("--continue", help="Go on with the newest conversation.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where its last run was cut off.")] = False,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Talk to a running host."""
    if newest and conversation is not None:
        fail("Give one of --continue and --conversation.", 2)
    if resume and (message is not None or json):
        fail("--resume takes neither a message nor --json.", 2)
    if resume and not newest and not conversation:
        fail("--resume wants --continue or --conversation.", 2)
    with host(url, token) as client:
        person = message is None and sys.stdin.isatty() and not json
        session = Chat(client, lively=person or (err.is_terminal and not json))
        session.conversation_id = session.newest() if newest else conversation
        if resume:
            raise SystemExit(not session.resume())
        if person:
            _converse(session, str(client.target))
            return
        say = session.say_for_programs if json else session.say
        if not say(_piped() if message is None else message):
            raise SystemExit(1)


def _piped() -> str:
    # As with arguments: what is not UTF-8 is refused where it is sent.
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").strip()
    return text or fail("There is nothing to say: standard input is empty.")


def _converse(session: Chat, target: str) -> None:
    out.print(f"[dim]Talking to {shown(target)}. /help shows the commands, Ctrl-D leaves.[/]")
    if session.conversation_id:
        session.open(session.conversation_id)
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

    history: History = InMemoryHistory()
    # A home is the host's to make: one with a history alone would pass for a host's.
    with suppress(OSError, SettingsError):
        path = Path(surroundings(os.environ)["PICOCLAW_HOME"]) / "chat_history"
        path.touch(mode=0o600)
        history = FileHistory(str(path))
    return PromptSession(history=history, key_bindings=bindings)
