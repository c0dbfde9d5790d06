"""What ``picoclaw store export`` wrote: rows of this very system, from another store of it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

from host.moving_in.arrivals import Arrivals, Broken, lines
from shared import jsons
from shared.store.sql.arrivals import ORDER

COLUMN: Final = re.compile(r"[a-z_]{1,40}", re.ASCII)
TOKENS: Final = "tokens and pins of tools: make new tokens"
WEBHOOKS: Final = "webhooks and what they are told: make new webhooks"
KEPT_BACK: Final = {
    **dict.fromkeys(("tokens", "tool_pins", "mcp_sign_ins"), TOKENS),
    **dict.fromkeys(("webhooks", "webhook_deliveries"), WEBHOOKS),
}
"""Tables whose digests or secrets an export doesn't have, and what to do for people who miss their rows."""


def read(path: Path) -> Arrivals:
    """Return what moves in; raises Broken."""
    arrivals, kept_back = Arrivals(), Counter[str]()
    for where, row in lines(path):
        table = str(row.pop("table", None))
        if table in KEPT_BACK:
            kept_back[KEPT_BACK[table]] += 1
        elif table not in ORDER:
            raise Broken(f"{where}: {table[:40]!r} is no table that store export writes")
        else:
            arrivals.add(table, {_column(name, where): _value(value) for name, value in row.items()})
    for run in arrivals.rows.get("runs", ()):
        if run.get("state") == "running":
            run |= {"state": "error", "code": "interrupted", "finished_at": run.get("created_at")}
    arrivals.lost += [f"{number} {what}" for what, number in kept_back.items()]
    return arrivals


def _column(name: str, where: str) -> str:
    if not COLUMN.fullmatch(name):
        raise Broken(f"{where}: {name[:40]!r} is no name of a column")
    return name


def _value(value: Any) -> Any:
    return jsons.dumps(value) if isinstance(value, dict | list) else value
