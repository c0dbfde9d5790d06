"""The worker that looks into one file for the host, with libraries that nothing else here has.

It reaches what it is handed and nothing else: no path, no network, no other process. All that it will need is
imported before it is confined, so it works whoever may read the place where the libraries are.
"""

from __future__ import annotations

import os
import resource
import runpy
import sys
from collections.abc import Callable
from typing import Any, Final

from ..config import Config
from ..confine import confine, privileges
from ..frames import Channel
from . import bounds, files
from .formats import Answer

MEMORY: Final = 512 << 20
PROCESSOR_S: Final = 10.0
_KILLED_AFTER_S: Final = 2
"""How much later the kernel ends what doesn't come back from a library (getrlimit(2))."""


def serve(channel: Channel, host: Channel, config: Config, program: str, packages: list[str]) -> None:
    """Load ``view`` from the host's ``program``, confine this process, then answer as ``files.serve``."""
    privileges.no_new_privileges()
    sys.path.extend(packages)
    view = runpy.run_path(program)["view"]
    confine.confine_viewer(config, MEMORY)
    privileges.limit(resource.RLIMIT_CPU, int(sum(os.times()[:2]) + PROCESSOR_S) + _KILLED_AFTER_S)

    files.attend(channel, host, lambda request: _answer(view, **request["arguments"]))


def _answer(view: Callable[..., Answer], descriptors: list[int], **asked: Any) -> Answer:
    bounds.begin(PROCESSOR_S)
    try:
        return {"ok": view(descriptors[0], **asked)}
    except bounds.TooLong:
        return {"ok": {"fault": "looking into it takes too long"}}
    except MemoryError:
        return {"ok": {"fault": "looking into it takes too much memory"}}
    except Exception:  # noqa: BLE001 - whatever a library says of a broken file
        return {"ok": {"fault": "it is damaged"}}
    finally:
        bounds.end()
