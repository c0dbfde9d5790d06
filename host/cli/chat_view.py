"""How a run looks while it goes on: the answer on standard output, everything about it beside."""

from __future__ import annotations

import sys
from typing import Any

from rich.markup import escape

from host.cli.terminal import err, safe, set_in, short, shown
from host.runs.text import MarkerFilter
from shared import jsons
from shared.lines import one_line

INPUT_WIDTH = 72
PREVIEW_WIDTH = 72


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
        preview = shown(short(str(data.get("preview", "")), PREVIEW_WIDTH))
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
        return shown(short(only if isinstance(only, str) else jsons.dumps(only), INPUT_WIDTH))
    return shown(short(jsons.dumps(value), INPUT_WIDTH))
