"""Shows a run that a person started: its events, one after the other."""

from __future__ import annotations

from typing import Any, Final

from rich.markup import escape

from host.agent.text import MarkerFilter
from host.cli.answers import AnswerWriter
from host.cli.terminal import err, safe, short, shown
from shared import jsons

WIDTH: Final = 72
"""Of what a tool was given, or gave."""


class RunView:
    """Shows one run's events.

    ``lively``: for a person at a terminal, with tools and messages as they come. Otherwise only the answer,
    and messages, are written.
    """

    def __init__(self, answer: AnswerWriter, *, lively: bool) -> None:
        self._answer = answer
        self._lively = lively
        self._thinks = False
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
        self._answer.write(self._unmarked.flush())
        self._line_start()

    def _start(self, data: dict[str, Any]) -> None:
        self.conversation_id = str(data.get("conversation_id", ""))
        self.run_id = str(data.get("run_id", ""))
        # It is for programs: they read of it in the answer.
        self._unmarked = MarkerFilter(str(data.get("session_end_marker") or ""))

    def _chunk(self, data: dict[str, Any]) -> None:
        self._end_thought()
        self._answer.write(self._unmarked.feed(str(data.get("text", ""))))

    def _thinking(self, data: dict[str, Any]) -> None:
        if self._lively:
            self._answer.end()
            self._thinks = True
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
        text = self._unmarked.without(str(data.get("text", "")))
        self._answer.message(str(data.get("sender") or "message"), text)

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
        self._end_thought()
        self._answer.end()

    def _end_thought(self) -> None:
        if self._thinks:
            err.print()
            self._thinks = False


def _arguments(value: object) -> str:
    if not isinstance(value, dict) or not value:
        return ""
    if len(value) == 1:
        (only,) = value.values()
        return shown(short(only if isinstance(only, str) else jsons.dumps(only), WIDTH))
    return shown(short(jsons.dumps(value), WIDTH))
