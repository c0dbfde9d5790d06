"""How an answer is written while it comes: as it is for programs, as Markdown for a person at a terminal."""

from __future__ import annotations

import sys
from typing import Final

from markdown_it import MarkdownIt
from rich.live import Live
from rich.markdown import Markdown
from rich.markup import escape
from rich.padding import Padding
from rich.segment import SegmentLines

from host.cli.terminal import out, safe, set_in
from shared.lines import one_line

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
