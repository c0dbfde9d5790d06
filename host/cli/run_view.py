"""Shows a run that a person started: its events, and its answer as Markdown while it comes."""

import sys
from typing import Any, Final

from markdown_it import MarkdownIt
from rich.live import Live
from rich.markdown import Markdown
from rich.markup import escape
from rich.padding import Padding
from rich.segment import SegmentLines

from host.agent.text import MarkerFilter
from host.cli.terminal import err, out, safe, set_in, short, shown
from shared import jsons
from shared.untrusted import one_line

PER_SECOND: Final = 12

# Without html an answer's "Vec<String>" stays whole: rich shows nothing of a tag.
PARSER: Final = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class PlainWriter:
    """Writes what the answer has."""

    def __init__(self) -> None:
        self._column_zero = True

    def write(self, text: str) -> None:
        """Write the next piece, without control characters."""
        if text := safe(text):
            sys.stdout.write(text)
            sys.stdout.flush()
            self._column_zero = text.endswith("\n")

    def end(self) -> None:
        """Finish the line."""
        if not self._column_zero:
            self.write("\n")

    def message(self, sender: str, text: str) -> None:
        """Write its lines below each other."""
        self.write(f"[{one_line(sender)}] {set_in(text)}\n")


class MarkdownWriter:
    """Renders block by block; the last one, which still grows, is drawn anew until it is complete."""

    def __init__(self) -> None:
        self._open = ""
        self._blocks = 0
        self._live: Live | None = None

    def write(self, text: str) -> None:
        """Render with the next piece."""
        self._open += safe(text)
        if self._live is None and self._open.strip():
            self._live = Live(
                get_renderable=self._growing, console=out, transient=True, refresh_per_second=PER_SECOND,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._live.start(refresh=True)
        if "\n" in text:
            complete = _complete(self._open)
            done, self._open = self._open[:complete], self._open[complete:]
            self._print(done)

    def end(self) -> None:
        """Leave the last block as it is."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._print(self._open)
        self._open, self._blocks = "", 0

    def message(self, sender: str, text: str) -> None:
        """Render it below its sender."""
        out.print(f"[bold]{escape(f'[{one_line(sender)}]')}[/]", soft_wrap=True)
        out.print(Padding(markdown(text), (0, 0, 0, 2)))

    def _print(self, text: str) -> None:
        if text.strip():
            if self._blocks:
                out.print()
            out.print(markdown(text))
            self._blocks += 1

    def _growing(self) -> SegmentLines:
        lines = out.render_lines(markdown(self._open), pad=False)
        return SegmentLines(lines[-max(1, out.height - 2) :], new_lines=True)


AnswerWriter = PlainWriter | MarkdownWriter


def markdown(text: str) -> Markdown:
    """Return a text of several lines ready for rich; addresses of links are shown, not hidden."""
    rendered = Markdown("", hyperlinks=False)
    rendered.parsed = PARSER.parse(safe(text))
    return rendered


def _complete(text: str) -> int:
    """Return how many characters of a text are blocks that nothing can change any more: all but the last."""
    begins = [token.map[0] for token in PARSER.parse(text) if token.level == 0 and token.map]
    lines = text.split("\n")[: begins[-1]] if begins else []
    return sum(len(line) + 1 for line in lines)


FITS: Final = 900
"""Characters of a call that the sentence of a pause has whole, whoever's it is."""
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
        self.whole: set[str] = set()
        """Calls that wait for a person, and were shown whole: by the sentence with which the run pauses."""
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

    def _approval_request(self, data: dict[str, Any]) -> None:
        if len(one_line(f"{data.get('tool')} {jsons.dumps(data.get('input'))}")) <= FITS:
            self.whole.add(str(data.get("id")))

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
