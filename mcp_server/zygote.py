"""``python -m mcp_server.zygote``: one warm process that forks a tool server per session.

Everything slow is imported once, before the first fork, when somebody is about to want a session: until
then an idle host does not hold the 36 MiB. A session then costs a fork. The zygote has no threads and no
event loop, so a fork is safe at any time. It serves one database, fixed at its own start:

- the control socket (inherited) brings the host's sessions: one packet, one descriptor; a packet without a
  descriptor only warms up;
- the door (a unix socket beside the database) brings those of outside agents: one packet, four descriptors.

When the control socket closes, the host is gone and the zygote ends with its sessions.
"""

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Final

from mcp_server import session_request
from mcp_server.session_request import CONVERSATION_ID, identity_of
from shared.processes import leave_the_end_to_the_host

GRACE_SECONDS: Final = 5.0
"""How long sessions may take to finish their calls after the host went."""
MAX_OUTSIDE_SESSIONS: Final = 64
_READY: Final = b"ready"


class Zygote:
    """Accepts requests for sessions and forks."""

    def __init__(self, database: Path, control: socket.socket) -> None:
        self._database = database
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._door: socket.socket | None = None
        self._door_inode = -1
        self._asking: set[socket.socket] = set()
        self._sessions: dict[int, socket.socket | None] = {}
        self._is_warm = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Fork sessions until the control socket closes, then let them end."""
        self._take_signals()
        self._door = _open_door(self._database)
        self._door_inode = _inode(self._database.with_name(session_request.door_name(self._database)))
        for readable in (self._control, self._door, self._wake_read):
            if readable is not None:
                self._selector.register(readable, selectors.EVENT_READ)
        while self._turn():
            pass
        self._end_sessions()

    def _take_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        leave_the_end_to_the_host()

    def _warm_up(self) -> None:
        if self._is_warm:
            return
        from mcp_server.session import warm

        warm()
        self._is_warm = True
        # The rehearsal's event loop had the signals.
        self._take_signals()
        # A host that has left already is noticed in the next turn.
        with contextlib.suppress(OSError):
            self._control.send(_READY)

    def _turn(self) -> bool:
        for key, _ in self._selector.select():
            if key.fileobj is self._control:
                if not self._host_session():
                    return False
            elif key.fileobj is self._door:
                self._someone_at_the_door()
            elif key.data is not None:
                self._outside_session(key.data)
        self._reap()
        return True

    def _host_session(self) -> bool:
        try:
            packet, fds, _, _ = socket.recv_fds(self._control, session_request.PACKET_LIMIT, 1)
        except ConnectionResetError:
            return False
        if not packet:
            return False
        try:
            self._warm_up()
            if len(fds) == 1:
                self._fork(session_request.decode(packet), [*fds, *fds], asker=None)
        finally:
            _close(fds)
        return True

    def _someone_at_the_door(self) -> None:
        """Let a stranger wait for its packet without making anyone else wait."""
        assert self._door is not None  # noqa: S101 - it is registered
        with contextlib.suppress(OSError):
            asker, _ = self._door.accept()
            asker.setblocking(False)
            if _peer_uid(asker) != os.geteuid() or len(self._asking) >= MAX_OUTSIDE_SESSIONS:
                asker.close()
                return
            self._asking.add(asker)
            self._selector.register(asker, selectors.EVENT_READ, data=asker)

    def _outside_session(self, asker: socket.socket) -> None:
        self._selector.unregister(asker)
        self._asking.discard(asker)
        fds: list[int] = []
        try:
            packet, fds, _, _ = socket.recv_fds(
                asker, session_request.PACKET_LIMIT, session_request.OUTSIDE_FDS
            )
            wanted = self._allowed(packet, fds)
            others = sum(each is not None for each in self._sessions.values())
            if wanted.to_host:
                socket.send_fds(self._control, [session_request.encode(wanted)], fds[:1])
                asker.send(session_request.SERVED)
                asker.close()
            elif self._is_warm and others < MAX_OUTSIDE_SESSIONS:
                self._fork(wanted, fds[:3], asker)
            else:
                # Whoever would have to wait is faster alone; the next one is not.
                asker.close()
                self._warm_up()
        except (OSError, session_request.BadRequest):
            asker.close()
        finally:
            _close(fds)

    def _allowed(self, packet: bytes, fds: list[int]) -> session_request.SessionRequest:
        """Return the wanted session; raises BadRequest.

        The fourth descriptor is the proof: only who may open the database for writing has one. A user id
        alone would not do, since the sandbox's commands may run under the host's.
        """
        wanted = session_request.decode(packet)._replace(access=None, token_id=None)
        if len(fds) != session_request.OUTSIDE_FDS or not CONVERSATION_ID.fullmatch(wanted.conversation_id):
            raise session_request.BadRequest
        ours, theirs = self._database.stat(), os.fstat(fds[3])
        if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
            raise session_request.BadRequest
        if fcntl.fcntl(fds[3], fcntl.F_GETFL) & (os.O_ACCMODE | os.O_PATH) != os.O_RDWR:
            raise session_request.BadRequest
        return wanted

    def _fork(
        self, wanted: session_request.SessionRequest, fds: list[int], asker: socket.socket | None
    ) -> None:
        child = os.fork()
        if child:
            self._sessions[child] = asker
            if asker is not None:
                asker.send(session_request.SERVED)
            return
        import logging  # in the sessions alone: as long as it waits the zygote is small

        status = 1
        try:
            status = self._be_session(wanted, fds, asker)
        except BaseException:
            logging.getLogger("picoclaw.mcp").exception("a session ended by a fault")
        finally:
            os._exit(status)

    def _be_session(
        self, wanted: session_request.SessionRequest, fds: list[int], asker: socket.socket | None
    ) -> int:
        from mcp_server.session import run_session

        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if asker is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for standard, fd in enumerate(fds):
            os.dup2(fd, standard)
        # Nothing of the zygote or of another session may stay open here.
        keep = -1 if asker is None else os.dup2(asker.fileno(), 3, inheritable=False)
        os.closerange(3 if keep < 0 else 4, os.sysconf("SC_OPEN_MAX"))
        identity = identity_of(
            {
                **os.environ,
                "PICOCLAW_CONVERSATION_ID": wanted.conversation_id,
                "PICOCLAW_PRINCIPAL_ID": wanted.principal_id,
                "PICOCLAW_IS_MAIN": "1" if wanted.is_main else "0",
                "TZ": wanted.timezone,
            }
        )
        identity = identity._replace(access=wanted.access, token_id=wanted.token_id)
        return run_session(identity, lifeline=None if keep < 0 else keep, asks=asker is not None)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        while self._sessions:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: int, code: int) -> None:
        asker = self._sessions.pop(child, None)
        if asker is not None:
            with contextlib.suppress(OSError):
                asker.send(bytes([code if 0 <= code < 256 else 1]))
            asker.close()

    def _close_door(self) -> None:
        if self._door is None:
            return
        self._door.close()
        path = self._database.with_name(session_request.door_name(self._database))
        # A newer zygote may have put its own door there.
        if _inode(path) == self._door_inode:
            path.unlink(missing_ok=True)

    def _end_sessions(self) -> None:
        self._close_door()
        for child, asker in self._sessions.items():
            # The host's sessions see the end of their input by themselves.
            if asker is not None:
                os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._sessions and time.monotonic() < deadline:
            self._selector.select(0.05)
            self._reap()
        for child in self._sessions:
            os.kill(child, signal.SIGKILL)


def _inode(path: Path) -> int:
    try:
        return path.lstat().st_ino
    except OSError:
        return -1


def _open_door(database: Path) -> socket.socket | None:
    """Return the listening door; None where the directory can't hold one: agents then serve themselves."""
    door = session_request.packet_socket()
    directory = session_request.open_directory(database)
    before = os.umask(0o177)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(session_request.door_name(database), dir_fd=directory)
        door.bind(session_request.door_address(directory, database))
        door.listen(128)
    except OSError:
        door.close()
        return None
    finally:
        os.umask(before)
        os.close(directory)
    return door


def _peer_uid(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def main() -> int:
    """Run on the control socket that is descriptor ``argv[1]``."""
    control = socket.socket(fileno=int(sys.argv[1]))
    Zygote(Path(os.environ["PICOCLAW_DB_PATH"]), control).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
