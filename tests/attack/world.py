"""The world of the attack tests: workspace, an outside full of canaries, bystanders, and the oracle."""

from __future__ import annotations

import base64
import codecs
import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.attack.listeners import Listeners

ROOT = Path(__file__).parents[2]
SANDBOX_UID = 61_900
"""The uid that the sandbox takes by itself."""

PRINCIPALS_UIDS = 70_000
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
_READ_BYTES = 4 << 20
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mode:
    """How the host runs: its uid, and the policy's choice of the commands' uid (None: it chooses).

    ``principals``: one of them attacks, and what is outside is another's.
    """

    name: str
    host_uid: int
    uid: int | None = None
    max_landlock_abi: int | None = None
    max_level: int = 3
    trusted: bool = True
    restricted: bool = True
    principals: bool = False

    @property
    def given_uid(self) -> int | None:
        """The uid to ask for. Beside other tests, whose commands run under the sandbox's own, it is one that
        nobody else has: what it leaves behind, and what others do, is told apart.
        """
        if self.has_own_uid and WORKER:
            return SANDBOX_UID + 1 + int(WORKER.removeprefix("gw"))
        return self.uid

    @property
    def has_own_uid(self) -> bool:
        return self.host_uid == 0 and self.uid is None and self.restricted

    @property
    def command_uid(self) -> int:
        if self.principals and self.host_uid == 0:
            return PRINCIPALS_UIDS + 2 * int(WORKER.removeprefix("gw") or 0)
        if self.has_own_uid:
            return SANDBOX_UID if self.given_uid is None else self.given_uid
        return self.host_uid


MODES = (Mode("own uid", 0),)
"""What runs every time; the image's tests run the corpus as uid 1000 in an unmodified container."""

RARE_MODES = (
    Mode("uid 1000", 1000),
    Mode("uid 1000, level 2", 1000, max_level=2),
    Mode("own uid, level 2", 0, max_level=2),
    Mode("own uid, a stranger's", 0, trusted=False),
    Mode("uid 1000, level 2, a stranger's", 1000, max_level=2, trusted=False),
    Mode("root's uid", 0, uid=0),
    Mode("root's uid, level 2", 0, uid=0, max_level=2),
    Mode("own uid, no Landlock", 0, max_landlock_abi=0),
    Mode("uid 1000, no Landlock", 1000, max_landlock_abi=0),
)
"""The other combinations, and how hosts are not meant to run but may: `make attack`."""

PRINCIPAL_MODES = tuple(
    Mode(f"a principal, {name}, level {level}", uid, max_level=level, principals=True)
    for name, uid in (("own uid", 0), ("uid 1000", 1000))
    for level in (3, 2)
)
"""A principal against another."""

LIFTED_MODES = tuple(
    Mode(f"{name}, level {level}", uid, max_level=level, restricted=False)
    for name, uid in (("root", 0), ("uid 1000", 1000))
    for level in (3, 2)
)
"""`restrict_to_workspace: false`."""


@dataclass(slots=True)
class Outcome:
    """What a call gave, and how long it took in seconds."""

    text: str
    is_error: bool
    wall: float

    @property
    def ended(self) -> str | None:
        for sign, name in (
            ("[stopped: time limit", "timeout"),
            ("[stopped: memory", "memory"),
            ("[stopped: too many", "processes"),
        ):
            if sign in self.text:
                return name
        return None


@dataclass(slots=True)
class World:
    """One mode's host, with everything around it."""

    mode: Mode
    root: Path = field(init=False)
    canaries: list[str] = field(init=False)
    host: subprocess.Popen[str] = field(init=False)
    facts: dict[str, Any] = field(init=False)
    victim: subprocess.Popen[bytes] = field(init=False)
    listeners: Listeners = field(init=False)
    temporary: str = ""

    def __post_init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="attack-"))
        self.root.chmod(0o755)
        self.canaries = [f"CANARY-{kind}-{secrets.token_hex(8)}" for kind in ("file", "env", "mem", "net")]
        for path in (self.root / "operator", self.outside.parent):
            path.mkdir(exist_ok=True)
        self.outside.mkdir()
        self.ws.mkdir()
        _fill_outside(self.outside, self.canaries[0])
        self.listeners = Listeners(self.outside, self.canaries[3])
        self.shm = Path(f"/dev/shm/attack-{secrets.token_hex(6)}")
        self.shm.write_text(self.canaries[0])
        self._shm_key = secrets.randbelow(1 << 30) + 1
        self._shm_id = _shared_memory(self._shm_key, self.canaries[2])
        self._own(self.root)
        victims_uid = self.mode.host_uid
        if self.mode.principals:
            victims_uid = self._close()
        self.victim = subprocess.Popen(["sleep", "100000"], user=victims_uid, cwd="/", env={})
        try:
            self._start_host()
        except BaseException:
            self.close()
            raise

    shm: Path = field(init=False)
    _shm_key: int = field(init=False)
    _shm_id: int = field(init=False)

    @property
    def ws(self) -> Path:
        return self.root / ("principals/attacker" if self.mode.principals else "ws")

    @property
    def outside(self) -> Path:
        return self.root / ("principals/victim" if self.mode.principals else "outside")

    def _close(self) -> int:
        """Give the other principal's files to its uid, as the sandbox does, and return that."""
        self.outside.parent.chmod(0o711)
        uid = self.mode.command_uid + (1 if self.mode.host_uid == 0 else 0)
        for each in (self.outside, *self.outside.rglob("*")):
            os.chown(each, uid, uid, follow_symlinks=False)
        self.outside.chmod(0o700)
        self.ws.chmod(0o700)
        os.chown(self.ws, self.mode.command_uid, self.mode.command_uid)
        return uid

    def _own(self, path: Path) -> None:
        if self.mode.host_uid != 0:
            for each in (path, *path.rglob("*")):
                os.chown(each, self.mode.host_uid, self.mode.host_uid, follow_symlinks=False)
            os.chown(self.shm, self.mode.host_uid, self.mode.host_uid)

    def _start_host(self) -> None:
        argument = {
            "workspace": str(self.ws),
            "outside": str(self.outside),
            "memory_canary": self.canaries[2],
            "uid": self.mode.given_uid,
            "max_landlock_abi": self.mode.max_landlock_abi,
            "max_level": self.mode.max_level,
            "trusted": self.mode.trusted,
            "restricted": self.mode.restricted,
            "principal": self.mode.command_uid if self.mode.principals else None,
        }
        packages = [path for path in sys.path if path.endswith("site-packages")]
        self.host = subprocess.Popen(
            [
                interpreter(self.mode.host_uid),
                str(ROOT / "tests/attack/host_process.py"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=self.mode.host_uid,
            group=self.mode.host_uid,
            extra_groups=[],
            cwd="/",
            env={
                "PYTHONPATH": os.pathsep.join([str(ROOT), *packages]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "API_TOKEN": self.canaries[1],
                "ANTHROPIC_API_KEY": self.canaries[1],
            },
        )
        self.facts = self.ask(**argument)

    def close(self) -> None:
        assert self.host.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died, which the tests have told
            self.host.stdin.close()
        self.host.wait(60)
        assert self.host.stdout is not None
        self.host.stdout.close()
        self.victim.kill()
        self.victim.wait()
        self.listeners.close()
        self.shm.unlink()
        _libc.shmctl(self._shm_id, 0, None)
        shutil.rmtree(self.root, ignore_errors=True)

    # --- talking to the host

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.host.stdin is not None
        self.host.stdin.write(json.dumps(request) + "\n")
        self.host.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.host.stdout is not None
        line = self.host.stdout.readline()
        assert line, "the host died"
        value: dict[str, Any] = json.loads(line)
        assert "fault" not in value, value
        return value

    def call(
        self, tool: str, arguments: dict[str, Any], conversation: str, limits: dict[str, int]
    ) -> Outcome:
        started = time.monotonic()
        answer = self.ask(tool=tool, input=arguments, conversation=conversation, limits=limits)
        return Outcome(answer["text"], answer["is_error"], time.monotonic() - started)

    # --- one entry after the other

    def lay_out(self, prelude: dict[str, str], conversation: str, limits: dict[str, int]) -> None:
        """Empty the workspace, put the prelude in it, and learn the conversation's TMPDIR."""
        for entry in self.ws.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                _remove(entry)
            else:
                entry.unlink()
        for name, content in prelude.items():
            target = self.ws / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
        uid = self.mode.command_uid
        for each in (self.ws, *self.ws.rglob("*")):
            os.chown(each, uid, uid)
        self.temporary = self.ask(op="temporary", conversation=conversation, limits=limits)["temporary"]

    def fill_in(self, text: str) -> str:
        for token, value in {
            "WS": self.ws,
            "TMP": self.temporary,
            "OUT": self.outside,
            "HOSTPID": self.facts["pid"],
            "MEMADDR": self.facts["memory"],
            "VICTIM": self.victim.pid,
            "TCP": self.listeners.tcp,
            "UDP": self.listeners.udp,
            "UNIX": self.listeners.unix,
            "DGRAM": self.listeners.dgram,
            "ABS": self.listeners.abstract,
            "SHMKEY": self._shm_key,
            "MQ": "/attack",
            "SHMFILE": self.shm,
        }.items():
            text = text.replace(f"@{token}@", str(value))
        return text

    def run_unconfined(self, command: str) -> subprocess.Popen[bytes]:
        """Run a harmless preparation (links, directories) as the commands' uid, in the workspace."""
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.ws,
            user=self.mode.host_uid,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    # --- the oracle

    def state(self) -> dict[str, Any]:
        """Everything that must be the same afterwards."""
        return {
            "outside": _tree(self.outside),
            "visits": list(self.listeners.visits),
            "victim": _process(self.victim.pid),
            "host": _process(self.facts["pid"]),
            "hostname": os.uname().nodename,
            "mounts": _mounts(str(self.root), self.temporary),
            "core_pattern": Path("/proc/sys/kernel/core_pattern").read_text(),
            "etc": {name: os.lstat(f"/etc/{name}").st_mtime_ns for name in os.listdir("/etc")},
            "shm": self.shm.read_text(),
            "sysv": _ipc(self._shm_key, self.mode.command_uid),
            "foreign": _strange_names(self.mode.command_uid),
        }

    def leaks(self, text: str) -> list[str]:
        """Return the canaries that appear, in any of the usual encodings, in the output or in files."""
        found = [f"{canary} in the output" for canary in self.canaries if _appears(canary, text.encode())]
        for top in (self.ws, Path(self.temporary)):
            for path in top.rglob("*"):
                if path.is_symlink() or not path.is_file() or path.stat().st_nlink > 1:
                    continue
                with path.open("rb") as file:
                    data = file.read(_READ_BYTES)
                found += [f"{canary} in {path}" for canary in self.canaries if _appears(canary, data)]
        return found

    def left_running(self) -> list[str]:
        """Return processes that belong to the sandbox or the world and are none of its own machinery.

        What is ending may take its time on a busy machine; what was left behind stays.
        """
        deadline = time.monotonic() + 20
        while (left := self._strangers()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def _strangers(self) -> list[str]:
        found: list[str] = []
        base = str(Path(self.temporary).parent).encode()
        theirs = f"\nUid:\t{self.mode.command_uid}\t".encode()
        for pid in psutil.pids():
            about = Path(f"/proc/{pid}")
            try:
                ours = self.mode.has_own_uid and theirs in (about / "status").read_bytes()  # a zombie, too
                ours = ours or os.readlink(about / "cwd").startswith(str(self.root))
                if ours or base in (about / "environ").read_bytes():
                    line = (about / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if "sandbox/worker/main.py" not in line and "host_process.py" not in line:
                        process = psutil.Process(pid)
                        found.append(f"{pid} {line or process.status()} (of {process.ppid()})")
            except (psutil.NoSuchProcess, OSError):
                continue
        return found

    def disk_megabytes(self) -> int:
        return sum(p.lstat().st_blocks * 512 for p in self.ws.rglob("*")) >> 20


def interpreter(uid: int) -> str:
    """Return a Python of our version that ``uid`` may execute."""
    candidates = [sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"]
    for path in candidates:
        child = (
            subprocess.run([path, "-c", ""], user=uid, cwd="/", check=False, capture_output=True)
            if _may(uid, "-x", path)
            else None
        )
        if child is not None and child.returncode == 0:
            return path
    raise FileNotFoundError(f"no Python that uid {uid} may run")


def may_read(uid: int, path: Path) -> bool:
    return _may(uid, "-r", str(path))


def _may(uid: int, what: str, path: str) -> bool:
    return subprocess.run(["test", what, path], user=uid, cwd="/", check=False).returncode == 0


def _fill_outside(outside: Path, canary: str) -> None:
    for name in (
        "secret.txt",
        "config.yaml",
        "meta.txt",
        "disk.img",
        "initctl",
        "home/.bashrc",
        "home/.ssh/id_rsa",
    ):
        path = outside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{canary}\n")
    for name in ("a", "b", "c/d"):
        path = outside / "doomed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("doomed\n")
    (outside / "link").symlink_to(f"{outside}/secret.txt")
    database = sqlite3.connect(outside / "store.db")
    database.execute("create table sessions (data text)")
    database.execute("insert into sessions values (?)", (canary,))
    database.commit()
    database.close()
    repository = outside / "repo"
    identity = ("-c", "user.name=n", "-c", "user.email=e@x")
    environment = {**os.environ, "HOME": str(outside), "GIT_CONFIG_NOSYSTEM": "1"}
    for command in (
        ["init", "-q", str(repository)],
        ["-C", str(repository), *identity, "commit", "-q", "--allow-empty", "-m", canary],
    ):
        subprocess.run(["git", *command], check=True, env=environment)


def _shared_memory(key: int, canary: str) -> int:
    _libc.shmat.restype = ctypes.c_void_p
    identity: int = _libc.shmget(key, 4096, 0o1666)
    address = _libc.shmat(identity, None, 0)
    ctypes.memmove(address, canary.encode(), len(canary))
    _libc.shmdt(ctypes.c_void_p(address))
    return identity


def _tree(top: Path) -> dict[str, Any]:
    return {str(path.relative_to(top)): _facts(path) for path in sorted([top, *top.rglob("*")])}


def _facts(path: Path) -> tuple[Any, ...]:
    status = path.lstat()
    content = ""
    if path.is_symlink():
        content = os.readlink(path)
    elif path.is_file():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    attributes = tuple((name, os.getxattr(path, name)) for name in os.listxattr(path, follow_symlinks=False))
    owner = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink)
    return (*owner, status.st_size, status.st_mtime_ns, content, attributes)


def _mounts(*ours: str) -> list[str]:
    """Return the mounts, without those that others make beside this test in temporary directories."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    others = f"{tempfile.gettempdir()}/"
    return [" ".join(line) for line in lines if line[4].startswith(ours) or not line[4].startswith(others)]


def _ipc(key: int, uid: int) -> list[str]:
    """Return our own System V objects, and any that belong to the commands' uid."""
    found = []
    for kind in ("shm", "sem", "msg"):
        for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[0] == str(key) or (uid and str(uid) in fields[4:10]):
                found.append(f"{kind} {fields[0]} {fields[1]}")
    return found


def _process(pid: int) -> tuple[Any, ...]:
    process = psutil.Process(pid)
    state = "stopped" if process.status() == psutil.STATUS_STOPPED else "alive"
    assert process.status() != psutil.STATUS_ZOMBIE, f"{pid} was killed"
    limits = Path(f"/proc/{pid}/limits").read_text()
    score = Path(f"/proc/{pid}/oom_score_adj").read_text()
    return (state, process.nice(), process.cpu_affinity(), process.ionice(), limits, score)


def _strange_names(uid: int) -> list[str]:
    """Names in shared places that a command may have left: its uid's, of root's only those that tell."""
    found = []
    for top in ("/tmp", "/dev/shm", "/var/tmp", "/dev/mqueue", "/run"):
        for name in os.listdir(top) if os.path.isdir(top) else []:
            path = f"{top}/{name}"
            telling = name.startswith(("sbx", "evil", "sem."))
            try:
                mine = os.lstat(path).st_uid == uid
            except OSError:
                continue
            if mine and (telling or (uid != 0 and not name.startswith(("attack-", "picoclaw-")))):
                found.append(path)
    return sorted(found)


def _appears(canary: str, data: bytes) -> bool:
    return any(form in data for form in _forms(canary))


def _forms(canary: str) -> list[bytes]:
    raw = canary.encode()
    forms = [
        raw,
        raw[::-1],
        raw.hex().encode(),
        raw.hex().upper().encode(),
        codecs.encode(canary, "rot13").encode(),
    ]
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw)
        forms.append(encoded[(shift and 4) : -4])  # the part that does not depend on the neighbours
    return forms


def _remove(directory: Path) -> None:
    def open_up(function: Any, path: str, _: Any) -> None:
        os.chmod(os.path.dirname(path), 0o700)
        os.chmod(path, 0o700, follow_symlinks=os.path.islink(path) is False)
        function(path)

    shutil.rmtree(directory, onerror=open_up)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a preparation that still runs, with everything in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
