"""A workspace on a file system that can less than a local one: the kernel answers as NFS or FUSE would."""

from __future__ import annotations

import base64
import ctypes
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.documents import png
from tests.http.conftest import alone_on_the_store, model
from tests.running import HostProcess, ModelProcess, directive, new_host, until

__all__ = ["model"]

pytestmark = [alone_on_the_store, pytest.mark.processes]

SERVE_WITHOUT = """
import errno, os, sys
from host.sandbox.worker import syscalls
from host.sandbox.worker.confine.bpf import Rule, Test, compile_filter, refuse
from host.sandbox.worker.confine.seccomp import install
rules = [Rule("renameat2", refuse(errno.EINVAL), Test(4, values=(syscalls.RENAME_NOREPLACE,)))]
if sys.argv.pop() == "no second names":
    rules.append(Rule("link linkat", refuse(errno.EPERM)))
    rules.append(Rule("openat", refuse(errno.EOPNOTSUPP), Test(2, mask=os.O_TMPFILE, values=(os.O_TMPFILE,))))
syscalls.prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
install(compile_filter(rules))
sys.argv[1:] = ["serve"]
from host.cli import main
main()
"""


@pytest.fixture(params=["second names", "no second names"])
def host(request: pytest.FixtureRequest, model: ModelProcess, tmp_path: Path) -> Iterator[HostProcess]:
    process = new_host(tmp_path / "host", model.url)
    process.command = (sys.executable, "-c", SERVE_WITHOUT, request.param)
    yield process.start()
    process.stop()


def test_new_files_are_made_and_moved_where_no_call_refuses_to_replace_one(host: HostProcess) -> None:
    with host.client() as client:
        files = "/chat/main/files"
        put = client.put(f"{files}/a.txt", content=b"one")
        assert (put.status_code, client.get(f"{files}/a.txt").content) == (201, b"one")
        assert client.put(f"{files}/a.txt", content=b"two").status_code == 200
        call = {"name": "write_file", "input": {"path": "b.txt", "content": "written"}}
        written = client.post("/chat", json={"message": directive(tools=[call]), "conversation_id": "main"})
        assert [change["path"] for change in written.json()["files_changed"]] == ["b.txt"]
        assert client.get(f"{files}/b.txt").content == b"written"
        assert client.put(f"{files}/folder/c.txt", content=b"three").status_code == 201
        taken = client.post(f"{files}/folder/c.txt", json={"move_to": "a.txt"})
        assert (taken.status_code, client.get(f"{files}/a.txt").content) == (409, b"two")
        assert client.post(f"{files}/folder", json={"move_to": "moved"}).status_code == 200
        assert client.post(f"{files}/a.txt", json={"move_to": "moved/a.txt"}).status_code == 200
        found = {file["path"] for file in client.get(files).json()["files"]}
        assert found == {"b.txt", "moved", "moved/a.txt", "moved/c.txt"}


@contextmanager
def hanging(directory: Path, *, gone: bool = False) -> Iterator[None]:
    """Lay a file system over a directory that answers nothing: FUSE, of which nobody takes the requests.

    ``gone``: it refuses everything instead, as its server has ended.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    try:
        if libc.mount(b"none", os.fsencode(directory), b"fuse", 0, options):
            pytest.skip(f"needs to mount: {os.strerror(ctypes.get_errno())}")
        if gone:
            os.close(server)
        yield
    finally:
        libc.umount2(os.fsencode(directory), 2)  # MNT_DETACH
        if not gone:
            os.close(server)  # who waits is told that there is no such file system any more


needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK), reason="needs root and FUSE"
)


@pytest.fixture
def started(model: ModelProcess, tmp_path: Path) -> Iterator[HostProcess]:
    """A host whose workspace is below the test's directory."""
    process = new_host(tmp_path / "host", model.url).start()
    yield process
    process.stop()


@needs_fuse
def test_a_workspace_that_hangs_holds_up_nobody_who_does_not_need_it(
    started: HostProcess, tmp_path: Path
) -> None:
    with started.client() as client:
        assert client.post("/chat", json={"message": "before"}).json()["status"] == "success"
        with hanging(tmp_path / "host" / "memory"):
            assert client.get("/health").json()["volumes"]["memory"] is False
            known = client.post("/chat", json={"message": "during"}).json()
            assert known["result"] == "echo: during"
            assert client.get("/ready").status_code == 200
        until(lambda: client.get("/health").json()["volumes"]["memory"] is True)


@needs_fuse
def test_what_needs_a_workspace_that_hangs_is_refused_and_done_once_it_answers(
    started: HostProcess, tmp_path: Path
) -> None:
    with started.client() as client:
        until(lambda: client.get("/health").json()["sandbox"]["state"] == "tested")
        known = client.post("/chat", json={"message": "before"}).json()["conversation_id"]
        file = f"/chat/{known}/files/a.txt"
        with hanging(tmp_path / "host" / "memory"):
            for answer in (client.get(file), client.put(file, content=b"x")):
                assert answer.status_code == 503
                assert "The file system of the workspace does not answer" in answer.text
        until(lambda: client.get(file).status_code == 404)  # the look that hung has come to its end


@needs_fuse
def test_conversations_are_deleted_while_their_files_hang_which_go_once_they_can_be_reached(
    started: HostProcess, tmp_path: Path
) -> None:
    memory = tmp_path / "host" / "memory"
    with started.client() as client:
        until(lambda: client.get("/health").json()["sandbox"]["state"] == "tested")
        known = client.post("/chat", json={"message": "before"}).json()["conversation_id"]
        response = client.post("/v1/responses", json={"input": "before"}).json()
        inboxes = [memory / "inbox" / known, memory / "inbox" / response["conversation"]["id"]]
        for inbox in inboxes:
            inbox.mkdir(parents=True)
            (inbox / "a.txt").touch()
        with hanging(memory):
            for path in (f"/chat/{known}", f"/v1/responses/{response['id']}"):
                assert client.delete(path).status_code in (200, 204)
                assert client.get(path).status_code == 404
        assert [inbox.exists() for inbox in inboxes] == [True, True]
    started.stop()
    with started.start().client():
        until(lambda: [inbox.exists() for inbox in inboxes] == [False, False])


@needs_fuse
def test_a_workspace_that_fails_is_told_as_such_and_no_fault_of_the_request(
    started: HostProcess, tmp_path: Path
) -> None:
    with started.client() as client:
        until(lambda: client.get("/health").json()["sandbox"]["state"] == "tested")
    with started.client() as client, hanging(tmp_path / "host" / "memory", gone=True):
        assert client.get("/health").json()["volumes"]["memory"] is False
        for request in (client.get, partial(client.put, content=b"x"), client.delete):
            answer = request("/chat/main/files/a.txt")
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), answer.text
            assert str(tmp_path) not in answer.text, answer.text
        known = client.post("/chat", json={"message": "during"}).json()
        assert known["result"] == "echo: during"
        assert client.delete(f"/chat/{known['conversation_id']}").status_code == 204


@needs_fuse
def test_a_run_whose_attachments_take_longer_than_a_lease_stays_this_hosts(
    model: ModelProcess, tmp_path: Path
) -> None:
    attached = {"name": "a.png", "data": base64.b64encode(png(4, 4)).decode()}
    body = {"message": "look", "conversation_id": "main", "attachments": [attached]}
    host = new_host(tmp_path / "host", model.url, {"LEASE_MS": "1000"}).start()
    with host.client() as client:
        client.post("/chat", json=body)
    host.stop()
    (kept,) = (tmp_path / "host").rglob("*.kept")
    host.start()
    try:
        with host.client() as client, ThreadPoolExecutor() as threads:
            with hanging(kept):
                asked = threads.submit(client.post, "/chat", json=body)
                until(lambda: client.get("/chat/main").json()["status"] == "running")
                longer = client.post("/chat", json={"message": directive(text="later", delay_ms=3000)})
                assert longer.json()["result"] == "later"
                assert client.get("/chat/main").json()["status"] == "running"
            assert asked.result().json()["error"].startswith("An attachment could not be stored: ")
    finally:
        host.stop()


@needs_fuse
def test_a_workspace_that_hangs_does_not_keep_the_host_from_ending(
    model: ModelProcess, tmp_path: Path
) -> None:
    host = new_host(tmp_path / "host", model.url).start()
    with host.client() as client, hanging(tmp_path / "host" / "memory"):
        assert client.get("/health").json()["volumes"]["memory"] is False
        assert client.post("/chat", json={"message": "during"}).json()["status"] == "success"
        assert host.stop() == 0
