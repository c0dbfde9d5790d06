"""The file worker: one process per conversation, confined before it hears of any path."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable
from typing import Final

from ..config import Config, Place
from ..confine import confine, namespaces, privileges
from ..confine.private_root import PrivateRoot
from ..frames import Channel, Closed, Frame, close_all
from ..limits.quota import Quota
from ..names import Refused, code_of, explain
from ..words import Words
from . import bounds
from .changes import changed_files, mark_files
from .formats import Answer
from .listing import list_dir, remove_folder, usage
from .paths import Roots, root_paths
from .reading import open_seen, read_file, read_text
from .survey import survey
from .transfer import TRANSFERS, remove_abandoned
from .writing import append_file, edit_file, save_file, write_file

OFFERING = {"read_file", "edit_file", "list_dir"}  # the host's own reads expect what may be absent
_OPERATIONS: Final[tuple[Callable[[Roots, Answer], Answer], ...]] = (
    *(read_file, read_text, open_seen, list_dir, survey),
    *(write_file, save_file, edit_file, append_file, remove_folder, usage),
)
_CHANGES: Final = {each.__name__: each for each in (mark_files, changed_files)}
TOOLS: Final = {operation.__name__: operation for operation in _OPERATIONS} | TRANSFERS | _CHANGES
ARCHIVE: Final = "conversations"
"""What the host alone writes in a workspace; see ``host.runs.archive``."""


def serve(channel: Channel, host: Channel, config: Config, place: Place, supervisor: int, locks: int) -> None:
    """Confine this process, then answer the host's requests until it or the supervisor closes its channel.

    ``locks``: see ``Roots``.
    """
    privileges.no_new_privileges()
    known = root_paths(config, place)
    quota = Quota(config) if config.counted else None
    words = Words(place.workspace, place.words)
    kept = Words(place.workspace, (*place.words, ARCHIVE))
    if needs_namespaces(config):
        namespaces.settle(config.inner_uid, config.inner_gid)
        root = PrivateRoot(config, place.workspace)
        root.enter()
        root.show(place)
        privileges.renounce()
        confine.confine_worker(config, place, uid=None, gid=None)
    else:
        confine.confine_worker(config, place, uid=config.uid, gid=config.gid)
        privileges.die_with_parent(supervisor)  # after the change of uid, which clears it (prctl(2))
    with Roots(known[:1]) as roots:
        remove_abandoned(roots)

    def respond(request: Frame) -> Frame:
        apart = request["tool"] in TRANSFERS
        roots = Roots(known[:1] if apart else known, place.home, locks, kept if apart else words, quota)
        frame = answer(request, roots)
        if quota is not None:
            quota.refresh()
        return frame

    attend(channel, host, respond)


def attend(channel: Channel, host: Channel, respond: Callable[[Frame], Frame]) -> None:
    """Answer each request of the host's until it or the supervisor closes its channel.

    Descriptors that come along are among its arguments, those that go back are in the answer.
    """
    bounds.settle()
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    waiting.register(host, select.POLLIN)
    with contextlib.suppress(Closed):
        # The supervisor says nothing: what is to be read there is its end.
        while channel.fileno() not in dict(waiting.poll()):
            request = host.receive()
            taken = host.descriptors(request.get("descriptors", 0))
            request["arguments"]["descriptors"] = taken
            given: list[int] = []
            try:
                frame = respond(request)
                given = frame.get("ok", {}).pop("descriptors", [])
                host.send(frame, given)
            finally:
                close_all({*taken, *given})


def needs_namespaces(config: Config) -> bool:
    """Return whether a private root has to stand in for Landlock, or to cover what Landlock can't leave out;
    without need a worker costs less.
    """
    return config.namespaces and (config.covers or not config.landlock_abi)


def answer(request: Frame, roots: Roots, processor_s: float = bounds.PROCESSOR_S) -> Frame:
    """Run one tool (``TOOLS``: its schema's arguments) within bounds; a fault of any kind is a sentence."""
    tool, arguments = request["tool"], request["arguments"]
    path = arguments.get("path") or "."
    bounds.begin(processor_s)
    try:
        with roots:
            try:
                return {"ok": TOOLS[tool](roots, arguments)}
            except (Refused, OSError) as error:
                sentence = str(error) if isinstance(error, Refused) else explain(path, error)
                missing = tool in OFFERING and FileNotFoundError in (type(error), type(error.__cause__))
                return {"error": sentence + (roots.offer(path) if missing else ""), "code": code_of(error)}
    except bounds.TooLong:
        return {"error": "stopped: it took too long; nothing was changed"}
    except MemoryError:
        return {"error": "stopped: it needs more memory than the file tools may have; nothing was changed"}
    except (ArithmeticError, LookupError, ValueError, TypeError, AttributeError) as error:
        return {"error": f"the file tool failed: {type(error).__name__}: {error}"}
    finally:
        bounds.end()
