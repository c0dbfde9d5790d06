"""What ``picoclaw store export`` wrote: rows of this very system, from another store of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from host.moving_in.arrivals import Arrivals, Broken, lines
from shared import jsons
from shared.store.sql.arrivals import ORDER

COLUMN: Final = re.compile(r"[a-z_]{1,40}", re.ASCII)
KEPT_BACK: Final = frozenset({"tokens", "tool_pins", "mcp_sign_ins"})
"""Tables that name no row which people would miss, and whose digests an export doesn't have."""


def read(path: Path) -> Arrivals:
    """Return what moves in; raises Broken."""
    arrivals, kept_back = Arrivals(), 0
    for where, row in lines(path):
        table = row.pop("table", None)
        if str(table) in KEPT_BACK:
            kept_back += 1
        elif str(table) not in ORDER:
            raise Broken(f"{where}: {str(table)[:40]!r} is no table that store export writes")
        else:
            arrivals.add(str(table), {_column(name, where): _value(value) for name, value in row.items()})
    for run in arrivals.rows.get("runs", ()):
        if run.get("state") == "running":
            run |= {"state": "error", "code": "interrupted", "finished_at": run.get("created_at")}
    if kept_back:
        arrivals.lost.append(f"{kept_back} tokens and pins of tools: make new tokens")
    return arrivals


def _column(name: str, where: str) -> str:
    if not COLUMN.fullmatch(name):
        raise Broken(f"{where}: {name[:40]!r} is no name of a column")
    return name


def _value(value: Any) -> Any:
    return jsons.dumps(value) if isinstance(value, dict | list) else value
