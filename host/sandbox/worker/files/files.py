"""The file workers, confined before they hear of any path: one a conversation, a viewer, and a surveyor."""

import contextlib
import os
import resource
import runpy
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..confine import confine, namespaces, privileges
from ..confine.namespaces import PrivateRoot
from ..frames import Channel, Closed, Config, Frame, Place, close_all
from ..limits.quota import Quota
from ..names import Refused, Words, code_of, explain
from . import reading
from .changes import changed_files, mark_files
from .directories import list_dir, remove_folder, survey, usage
from .paths import RootPath, Roots, root_paths
from .reading import Answer, open_seen, read_file, read_text
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
"""What the host alone writes in a workspace; see ``host.runs.conversation_files``."""


def serve(channel: Channel, host: Channel, config: Config, place: Place, supervisor: int, locks: int) -> None:
    """Confine this process, then answer the host's requests until it or the supervisor closes its channel.

    ``locks``: see ``Roots``.
    """
    privileges.no_new_privileges()
    known = root_paths(config, place)
    quota = Quota(config) if config.counted else None
    words = Words(place.workspace, place.words)
    kept = Words(place.workspace, place.words, (ARCHIVE,))
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
        return answer(request, roots)

    attend(channel, host, respond, (lambda: None) if quota is None else quota.refresh)


def attend(
    channel: Channel,
    host: Channel,
    respond: Callable[[Frame], Frame],
    settle: Callable[[], int | None] = lambda: None,
) -> None:
    """Answer each request of the host's until it or the supervisor closes its channel.

    Descriptors that come along are among its arguments, those that go back are in the answer. ``settle`` is
    called before that goes, and again after the milliseconds that it returns.
    """
    pause: int | None = None
    reading.settle_clock()
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    waiting.register(host, select.POLLIN)
    with contextlib.suppress(Closed):
        # The supervisor says nothing: what is to be read there is its end.
        while channel.fileno() not in (ready := dict(waiting.poll(pause))):
            if not ready:
                pause = settle()
                continue
            request = host.receive()
            taken = host.descriptors(request.get("descriptors", 0))
            request["arguments"]["descriptors"] = taken
            given: list[int] = []
            try:
                frame = respond(request)
                pause = settle()
                given = frame.get("ok", {}).pop("descriptors", [])
                host.send(frame, given)
            finally:
                close_all({*taken, *given})


def needs_namespaces(config: Config) -> bool:
    """Return whether a private root has to stand in for Landlock, or to cover what Landlock can't leave out;
    without need a worker costs less.
    """
    return config.namespaces and (config.covers or not config.landlock_abi)


def answer(request: Frame, roots: Roots, processor_s: float | None = None) -> Frame:
    """Run one tool (``TOOLS``: its schema's arguments) within bounds; a fault of any kind is a sentence."""
    tool, arguments = request["tool"], request["arguments"]
    path = arguments.get("path") or "."
    reading.start_clock(processor_s or reading.PROCESSOR_S)
    try:
        with roots:
            try:
                return {"ok": TOOLS[tool](roots, arguments)}
            except (Refused, OSError) as error:
                sentence = str(error) if isinstance(error, Refused) else explain(path, error)
                missing = tool in OFFERING and FileNotFoundError in (type(error), type(error.__cause__))
                return {"error": sentence + (roots.offer(path) if missing else ""), "code": code_of(error)}
    except reading.TooLong:
        return {"error": "stopped: it took too long; nothing was changed"}
    except MemoryError:
        return {"error": "stopped: it needs more memory than the file tools may have; nothing was changed"}
    except (ArithmeticError, LookupError, ValueError, TypeError, AttributeError) as error:
        return {"error": f"the file tool failed: {type(error).__name__}: {error}"}
    finally:
        reading.stop_clock()


VIEWER_MEMORY: Final = 512 << 20
VIEWER_S: Final = 10.0
_KILLED_AFTER_S: Final = 2
"""How much later the kernel ends what doesn't come back from a library (getrlimit(2))."""


def serve_viewer(
    channel: Channel, host: Channel, config: Config, program: str, kind: str, packages: list[str]
) -> None:
    """Load ``view`` from the host's ``program``, confine this process, then answer as ``serve`` does.

    It reaches what it is handed and nothing else: no path, no network, no other process. All that it will
    need for a ``kind`` is imported before, so it works whoever may read the place where the libraries are.
    """
    privileges.no_new_privileges()
    sys.path.extend(packages)
    view = runpy.run_path(program, {"KIND": kind})["view"]
    confine.confine_viewer(config, VIEWER_MEMORY)
    privileges.limit(resource.RLIMIT_CPU, int(sum(os.times()[:2]) + VIEWER_S) + _KILLED_AFTER_S)

    attend(channel, host, lambda request: _view(view, **request["arguments"]))


def _view(view: Callable[..., Answer], descriptors: list[int], **asked: Any) -> Answer:
    reading.start_clock(VIEWER_S)
    try:
        return {"ok": view(descriptors[0], **asked)}
    except reading.TooLong:
        return {"ok": {"fault": "looking into it takes too long"}}
    except MemoryError:
        return {"ok": {"fault": "looking into it takes too much memory"}}
    except Exception:  # noqa: BLE001 - whatever a library says of a broken file
        return {"ok": {"fault": "it is damaged"}}
    finally:
        reading.stop_clock()


SURVEYOR_S: Final = 0.5  # a survey of a hundred skills takes 10 ms, and the other principals' wait meanwhile


def serve_surveyor(channel: Channel, host: Channel, config: Config, directory: str) -> None:
    """Confine this process to ``directory``, then look at those of all principals, one after the other.

    It has no tool but ``survey``, may write nothing, and works under the uid of whose directory it looks at:
    what that principal plants leads to no more than the principal itself reaches.
    """
    privileges.no_new_privileges()
    confine.confine_surveyor(config, directory)

    def respond(request: Frame) -> Frame:
        arguments = request["arguments"] | {"unborn": True}
        with _acting_as(config, arguments["uid"]):
            roots = Roots([RootPath(arguments["root"], False, follow=False)])
            return answer({"tool": "survey", "arguments": arguments}, roots, SURVEYOR_S)

    attend(channel, host, respond)


@contextlib.contextmanager
def _acting_as(config: Config, principals: int | None) -> Iterator[None]:
    """Have a principal's uid, or that of all commands if it has none: root passes over no mode."""
    own = None if config.no_uids else principals
    uid, gid = (config.uid, config.gid) if own is None else (own, own)
    if uid is None or gid is None:
        yield
        return
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
