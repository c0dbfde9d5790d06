"""``picoclaw usage``: what model calls used, as bars in the terminal."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import typer
from rich.table import Table

from host.cli.client import Json, Token, Url, host
from host.cli.terminal import shown, table, tell

BAR_WIDTH: Final = 32
EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def usage(
    by: Annotated[
        Literal["day", "conversation"],
        typer.Option(help="A bar for each day, or for each conversation of a day."),
    ] = "day",
    conversation: Annotated[str | None, typer.Option(help="Only this conversation, with its tasks.")] = None,
    rows: Annotated[int, typer.Option("--last", min=1, max=1000, help="How many bars.")] = 14,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Show tokens and dollars used, newest day first (days are UTC)."""
    params = {"by": by, "limit": str(rows)}
    if conversation is not None:
        params["conversation_id"] = conversation
    with host(url, token, say=not json) as client:
        used = client.request("GET", "/usage", params=params)["usage"]
    tell(used, _bars(used) if used else "Nothing used yet.", json=json)


def _bars(used: list[dict[str, Any]]) -> Table:
    """Return usage as a table with bars; the longest bar is the most tokens shown."""
    apart = any(row["conversation_id"] is not None for row in used)
    made = table("day", *(["conversation"] if apart else []), "", "tokens", "cost", "runs")
    most = max((row["tokens"] for row in used), default=0)
    for row in used:
        made.add_row(
            shown(row["day"]),
            *([shown(str(row["conversation_id"]))] if apart else []),
            f"[cyan]{bar(row['tokens'], most)}[/]",
            f"{row['tokens']:,}",
            f"${row['dollars']:,.2f}",
            f"{row['runs']:,}",
        )
    return made


def bar(value: int, most: int) -> str:
    """Return a bar in eighths of a character; anything that was used shows at least one eighth."""
    if value <= 0 or most <= 0:
        return ""
    full, rest = divmod(max(1, round(value / most * BAR_WIDTH * 8)), 8)
    return EIGHTHS[8] * full + (EIGHTHS[rest] if rest else "")
