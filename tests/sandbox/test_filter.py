"""The system call filter and the Landlock rules, against the kernel: each in a process of its own."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable

import pytest

from host.sandbox.worker import frames, syscalls
from host.sandbox.worker.confine import bpf, grants, privileges, seccomp
from host.sandbox.worker.exec.command import Output

X32_BIT = 0x40000000  # __X32_SYSCALL_BIT, include/uapi/asm/unistd.h
PLAIN = seccomp.Kind(seccomp.Sockets.PAIRS, seccomp.Metadata.PERMISSIONS, truncation=True)
HELD, WENT_THROUGH, BROKEN = 10, 20, 30


def confined(program: bytes, attempt: Callable[[], object]) -> int | None:
    """Return the errno that an attempt meets under a filter, None if it succeeds."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            privileges.no_new_privileges()
            seccomp.install(program)
            attempt()
            os.write(write, b"0")
        except OSError as error:
            os.write(write, str(error.errno).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        code = int(answer.read())
    os.waitpid(pid, 0)
    return code or None


def closed() -> bytes:
    return seccomp.without_notifications(PLAIN)


def call(name: str, *arguments: int | bytes | None) -> Callable[[], object]:
    number = syscalls.number(name)
    assert number is not None
    return lambda: syscalls.call(number, *arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ptrace", (0, 0, 0, 0)),
        ("unshare", (0,)),
        ("keyctl", (0, -3, 0)),
        ("bpf", (0, None, 0)),
        ("io_uring_setup", (1, None)),
        ("shmget", (0, 4096, 0o1600)),
        ("setpriority", (0, 1, 5)),
        ("setpriority", (2, 0, 5)),
        ("prlimit64", (1, 7, None, None)),
        ("personality", (0x40000,)),
        ("ioctl", (0, 0x5412, b"x")),
        ("clone", (0x10000000, 0, 0, 0, 0)),
        ("clone", (0x10900, 0, 0, 0, 0)),  # a thread with descriptors of its own
    ],
)
def test_what_reaches_beyond_oneself_is_refused(name: str, arguments: tuple[int, ...]) -> None:
    assert confined(closed(), call(name, *arguments)) == errno.EPERM


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("prlimit64", (0, 7, None, None)), ("setpriority", (0, 0, 5)), ("personality", (0xFFFFFFFF,))],
)
def test_the_same_calls_on_oneself_are_fine(name: str, arguments: tuple[int, ...]) -> None:
    assert confined(closed(), call(name, *arguments)) is None


def test_descriptors_are_closed_but_not_parted_from_those_of_other_threads() -> None:
    assert confined(closed(), call("close_range", 4000, 4001, 0)) is None
    assert confined(closed(), call("close_range", 4000, 4001, 2)) == errno.EINVAL


@pytest.mark.parametrize("option", [socket.SO_SNDBUF, socket.SO_RCVBUF])
def test_a_socket_may_be_asked_to_hold_more_and_does_not(option: int) -> None:
    one, other = socket.socketpair()

    def ask() -> None:
        before = one.getsockopt(socket.SOL_SOCKET, option)
        one.setsockopt(socket.SOL_SOCKET, option, 1 << 22)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(16))
        if one.getsockopt(socket.SOL_SOCKET, option) != before:
            raise OSError(errno.ENOBUFS, "it holds more")

    with one, other:
        assert confined(closed(), ask) is None


def test_unknown_calls_do_not_exist() -> None:
    assert confined(closed(), lambda: syscalls.call(syscalls.NEWEST_KNOWN + 1)) == errno.ENOSYS
    assert confined(closed(), call("clone3", None, 0)) == errno.ENOSYS


@pytest.mark.skipif(syscalls.MACHINE != "x86_64", reason="needs x86_64")
def test_the_x32_numbers_do_not_exist() -> None:
    assert confined(closed(), lambda: syscalls.call(X32_BIT | 39)) == errno.ENOSYS


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_RAW])
def test_only_stream_pairs_are_made(kind: int) -> None:
    assert confined(closed(), lambda: socket.socketpair(socket.AF_UNIX, kind)) == errno.EACCES
    assert confined(closed(), lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)) is None


@pytest.mark.parametrize("family", range(46))
def test_no_socket_is_made_without_the_network(family: int) -> None:
    assert confined(closed(), call("socket", family, socket.SOCK_STREAM, 0)) == errno.EACCES


def test_with_the_network_only_internet_sockets_are_made() -> None:
    program = seccomp.without_notifications(PLAIN._replace(sockets=seccomp.Sockets.NETWORK))
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM | socket.SOCK_CLOEXEC):
            assert confined(program, call("socket", family, kind, 0)) in (None, errno.EAFNOSUPPORT)
    for other in (socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET, 40):
        assert confined(program, call("socket", other, socket.SOCK_STREAM, 0)) == errno.EACCES
    assert confined(program, call("socket", socket.AF_INET, socket.SOCK_RAW, 1)) == errno.EACCES


def test_set_id_bits_are_refused_wherever_a_mode_is_given(tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.mktemp("modes")
    path = str(top / "f")
    for attempt in (
        lambda: os.open(path, os.O_CREAT | os.O_WRONLY, 0o4755),
        lambda: os.mkdir(str(top / "d"), 0o2755),
        lambda: os.mknod(str(top / "n"), 0o106755),
        lambda: os.mknod(str(top / "c"), 0o020600, os.makedev(1, 3)),
    ):
        assert confined(closed(), attempt) == errno.EPERM
    assert confined(closed(), lambda: os.open(path, os.O_CREAT | os.O_WRONLY, 0o755)) is None
    assert confined(closed(), lambda: os.chmod(path, 0o4755)) == errno.EPERM
    assert confined(closed(), lambda: os.chmod(path, 0o700)) is None


def test_the_worker_starts_nothing() -> None:
    assert confined(seccomp.worker_filter(), lambda: os.fork() or os._exit(0)) in (errno.EPERM, errno.ENOSYS)
    assert confined(seccomp.worker_filter(), lambda: os.execv("/bin/true", ["true"])) == errno.EPERM


def test_a_jump_out_of_reach_is_found_when_assembling() -> None:
    program = bpf.Program()
    program.jump(bpf.JUMP_EQUAL, 1, true="far")
    for _ in range(300):
        program.load(bpf.NUMBER)
    program.label("far")
    program.give(bpf.ALLOW)
    with pytest.raises(ValueError, match="out of reach"):
        program.assemble()


def test_every_older_abi_handles_less_and_none_of_it_is_unknown() -> None:
    rights = [grants.handled_access(version) for version in range(1, 8)]
    assert rights == sorted(rights)
    assert grants.Access.REFER not in rights[0]
    assert grants.Access.TRUNCATE in rights[2]
    assert rights[-1] == grants.Access((1 << 16) - 1)


def test_the_kernel_takes_our_rule_sets_for_every_abi() -> None:
    for version in range(1, grants.abi() + 1):
        scopes = grants.Scope.SIGNAL | grants.Scope.ABSTRACT_UNIX_SOCKET
        grants.Ruleset(version, files=True, network=True, scopes=scopes).close()


@pytest.mark.parametrize(
    "wire",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02[]",
        b"\0\0\0\x01{",
        b"\0\0\x27\x10" + b"[" * 10_000,
        b"\0\0\0\x02\xff\xfe",
    ],
)
def test_frames_out_of_protocol_end_the_connection(wire: bytes) -> None:
    with pytest.raises(frames.Closed):
        frames.Decoder().feed(wire)


def test_frames_may_arrive_in_any_pieces() -> None:
    wire = frames.encode({"a": "é"}) + frames.encode({"b": 2})
    decoder = frames.Decoder()
    got = [frame for byte in wire for frame in decoder.feed(bytes([byte]))]
    assert got == [{"a": "é"}, {"b": 2}]


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_output_keeps_the_beginning_and_the_end(pieces: int) -> None:
    output = Output(100)
    data = bytes(range(65, 91)) * 40
    for start in range(0, len(data), pieces):
        output.add(data[start : start + pieces])
    text = output.text()
    assert f"[... {len(data) - 100} bytes left out ...]" in text
    assert text.startswith(data[:50].decode())
    assert text.endswith(data[-50:].decode())


def test_errno_is_read_from_the_right_library() -> None:
    with pytest.raises(FileNotFoundError):
        syscalls.openat2(syscalls.AT_FDCWD, "/nowhere", os.O_RDONLY)
    assert isinstance(ctypes.get_errno(), int)
