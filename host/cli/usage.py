"""``picoclaw usage``: what model calls used, as bars in the terminal."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import typer
from rich.text import Text

from host.cli.client import HostClient, asking
from host.cli.terminal import Told, listing

BAR_WIDTH: Final = 32
EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


@asking
def usage(
    client: HostClient,
    by: Annotated[
        Literal["day", "conversation"],
        typer.Option(help="A bar for each day, or for each conversation of a day."),
    ] = "day",
    conversation: Annotated[str | None, typer.Option(help="Only this conversation, with its tasks.")] = None,
    rows: Annotated[int, typer.Option("--last", min=1, max=1000, help="How many bars.")] = 14,
) -> Told:
    """Show tokens and dollars used, newest day first (days are UTC)."""
    params = {"by": by, "limit": str(rows)}
    if conversation is not None:
        params["conversation_id"] = conversation
    used = client.request("GET", "/usage", params=params)["usage"]
    apart = any(row["conversation_id"] is not None for row in used)
    most = max((row["tokens"] for row in used), default=0)
    return listing(
        used,
        "Nothing used yet.",
        {
            "day": "day",
            **({"conversation": "conversation_id"} if apart else {}),
            "": lambda row: Text(bar(row["tokens"], most), style="cyan"),
            "tokens": lambda row: f"{row['tokens']:,}",
            "cost": lambda row: f"${row['dollars']:,.2f}",
            "runs": lambda row: f"{row['runs']:,}",
        },
    )


def bar(value: int, most: int) -> str:
    """Return a bar in eighths of a character, the longest for the most; what was used shows at least one."""
    if value <= 0 or most <= 0:
        return ""
    full, rest = divmod(max(1, round(value / most * BAR_WIDTH * 8)), 8)
    return EIGHTHS[8] * full + (EIGHTHS[rest] if rest else "")
