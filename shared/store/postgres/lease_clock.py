"""The lease clock of this engine: the database server's, because clocks of several hosts differ.

PostgreSQL shows its statements no clock that a change of the server's wall clock doesn't move, so that server
should slew its time, as NTP daemons do (docs/scale.md).
"""

from __future__ import annotations

from typing import Final

NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""An expression: the lease clock in milliseconds."""
