"""``picoclaw supervise``: the main process of the image."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from shared.processes import not_dumpable

NOT_INSTALLED: Final = "picoclaw: supervise needs supervisord: pip install 'picoclaw[image]'\n"
MISSING: Final = 2


def supervise(config: str | None = None) -> int:
    """Run the programs of a supervisord.conf; return the exit code of the one that ended the container."""
    # The environment holds every secret of the programs, for as long as they may have to be restarted.
    not_dumpable()
    try:
        from host.supervision import supervise as run
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("supervisor"):
            raise
        sys.stderr.write(NOT_INSTALLED)
        return MISSING
    return run(config, all_json=os.environ.get("LOG_FORMAT") != "console")


def supervise_command(config: Path | None = None) -> None:
    """Run the programs of a supervisord.conf, as the main process of a container."""
    raise SystemExit(supervise(None if config is None else str(config)))
