"""Whose files are whose, what a conversation may change, and what fits: nothing of a refused file stays."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.http.two_principals import SETTINGS, Somebody, somebody
from tests.only_root import only_root
from tests.running import HostProcess, ModelProcess, new_host, until

pytestmark = pytest.mark.processes

MIB = 1 << 20


@pytest.fixture(scope="module")
def host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = new_host(tmp_path_factory.mktemp("apart"), model.url, SETTINGS)
    yield process.start()
    process.kill()


@pytest.fixture(scope="module")
def ann(host: HostProcess) -> Iterator[Somebody]:
    with somebody(host, "Ann", workspace_mb=8) as who:
        who.chat("hello", conversation_id="main")
        yield who


@pytest.fixture(scope="module")
def bob(host: HostProcess) -> Iterator[Somebody]:
    with somebody(host, "Bob") as who:
        who.ids["conversation"] = who.chat("hello")["conversation_id"]
        who.chat("hello", conversation_id="main")
        yield who


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


def test_one_s_files_are_nothing_to_another(host: HostProcess, ann: Somebody, bob: Somebody) -> None:
    assert ann.client.put("/chat/main/files/mine", content=b"apples").status_code == 201
    assert bob.client.put("/chat/main/files/mine", content=b"bananas").status_code == 201
    assert ann.client.get("/chat/main/files/mine").text == "apples"
    theirs = bob.ids["conversation"]
    for method, path in (
        ("GET", ""),
        ("GET", "/mine"),
        ("PUT", "/mine"),
        ("DELETE", "/mine"),
        ("POST", "/mine"),
    ):
        body = (
            {"json": {"move_to": "x"}} if method == "POST" else {"content": b"x"} if method == "PUT" else {}
        )
        for conversation in (theirs, f"{bob.id}+main"):
            refused = ann.client.request(method, f"/chat/{conversation}/files{path}", **body)
            assert code(refused) == (404, "not_found"), (method, path)
    assert bob.client.get(f"/chat/{theirs}/files/mine").text == "bananas"
    with host.client() as operator:
        assert operator.get(f"/chat/{theirs}/files/mine").text == "bananas"
        assert code(operator.get("/chat/main/files/mine")) == (404, "not_found")


def test_the_bytes_of_a_principal_s_file_are_left_as_they_are(ann: Somebody) -> None:
    content = f"{ann.id}+main and {ann.id}+".encode() * 20_000
    assert ann.client.put("/chat/main/files/names", content=content).status_code == 201
    got = ann.client.get("/chat/main/files/names")
    assert (got.content, got.headers["content-length"]) == (content, str(len(content)))
    ann.client.delete("/chat/main/files/names")


def test_a_token_needs_the_scope(ann: Somebody) -> None:
    token = ann.client.post("/me/tokens", json={"name": "n", "scopes": ["chat"]}).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    for method, path in (("GET", ""), ("PUT", "/x"), ("GET", "/x"), ("DELETE", "/x"), ("POST", "")):
        content = b"x" if method in ("PUT", "POST") else None
        answer = ann.client.request(method, f"/chat/main/files{path}", content=content, headers=headers)
        assert code(answer) == (403, "forbidden")


def test_bytes_count_as_they_come_and_two_can_t_both_have_the_last_one(ann: Somebody) -> None:
    ann.client.put("/chat/main/files/half", content=bytes(4 * MIB))
    refused = ann.client.put("/chat/main/files/more", content=iter([os.urandom(MIB)] * 6))
    assert code(refused) == (507, "workspace_full")
    assert "of 8 MiB used" in refused.json()["error"]
    assert code(ann.client.get("/chat/main/files/more")) == (404, "not_found")
    answers: list[int] = []

    def put(name: str) -> None:
        content = iter([os.urandom(MIB // 4)] * 12)
        answers.append(ann.client.put(f"/chat/main/files/{name}", content=content).status_code)

    threads = [threading.Thread(target=put, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) in ([201, 507], [507, 507])
    for name in ("one", "two", "half"):
        ann.client.delete(f"/chat/main/files/{name}")
    assert ann.client.put("/chat/main/files/whole", content=bytes(7 * MIB)).status_code == 201
    again = ann.client.put("/chat/main/files/whole", content=bytes(7 * MIB))
    assert again.status_code in (200, 507)
    assert ann.client.delete("/chat/main/files/whole").status_code == 204


def test_a_connection_goes_on_behind_an_upload_that_was_refused(host: HostProcess, ann: Somebody) -> None:
    rest = f"HTTP/1.1\r\nHost: a\r\nAuthorization: {ann.client.headers['Authorization']}\r\n"
    put = f"PUT /chat/main/files/more {rest}Content-Length: {9 * MIB}\r\n\r\n".encode()
    get = f"GET /chat/main/files/more {rest}Connection: close\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", host.port), 60) as peer:
        peer.sendall(put + os.urandom(9 * MIB) + get)
        got = b"".join(iter(lambda: peer.recv(MIB), b""))
    assert [got[at.end() : at.end() + 3] for at in re.finditer(rb"HTTP/1\.1 ", got)] == [b"507", b"404"]


@only_root
def test_an_upload_that_is_cut_off_leaves_nothing(host: HostProcess, bob: Somebody) -> None:
    with contextlib.closing(half(bob.client, "/chat/main/files/cut", size=9 * MIB)) as upload:
        upload.send(os.urandom(5 * MIB))
    until(lambda: not nameless(host))
    assert "cut" not in bob.client.get("/chat/main/files").text


@only_root
def test_few_files_of_a_principal_move_at_once(host: HostProcess, ann: Somebody, bob: Somebody) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(contextlib.closing(half(ann.client)))
        until(lambda: len(nameless(host)) == 4)
        refused = ann.client.get("/chat/main/files/mine")
        assert (*code(refused), refused.headers["retry-after"]) == (503, "busy", "1")
        assert bob.client.get("/chat/main/files/mine").status_code == 200
    until(lambda: not nameless(host))
    assert ann.client.get("/chat/main/files/mine").status_code == 200
    assert "half" not in ann.client.get("/chat/main/files").text


def test_large_bodies_of_a_user_leave_places_for_others(ann: Somebody, bob: Somebody) -> None:
    data = base64.b64encode(bytes(MIB)).decode()
    said = {"message": "look", "attachments": [{"name": "a.bin", "data": data}]}
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            upload = half(ann.client, "/chat", size=2 * MIB, method="POST")
            stack.enter_context(contextlib.closing(upload))
        until(lambda: ann.client.post("/chat", json=said).status_code == 503)
        assert bob.client.post("/chat", json=said).status_code == 200
    until(lambda: ann.client.post("/chat", json=said).status_code == 200)


@only_root
def test_what_ends_during_an_upload_gets_no_file(host: HostProcess, bob: Somebody) -> None:
    conversation = bob.chat("hello")["conversation_id"]
    with contextlib.closing(half(bob.client, f"/chat/{conversation}/files/late")) as upload:
        until(lambda: nameless(host))
        assert bob.client.delete(f"/chat/{conversation}").status_code == 204
        upload.send(b"x" * 500)
        assert upload.getresponse().status == 404
    token = bob.client.post("/me/tokens", json={"name": "n", "scopes": ["files"]}).json()
    theirs = httpx2.Client(base_url=host.url, headers={"Authorization": f"Bearer {token['token']}"})
    with theirs, contextlib.closing(half(theirs, "/chat/main/files/late")) as upload:
        until(lambda: nameless(host))
        bob.client.delete(f"/me/tokens/{token['id']}")
        assert upload.getresponse().status == 401
    assert "late" not in bob.client.get("/chat/main/files").text


def nameless(host: HostProcess) -> list[str]:
    """Return the files without a name that the host has open."""
    assert host.process is not None
    found = []
    for entry in Path(f"/proc/{host.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))
    return [path for path in found if "/#" in path and path.endswith("(deleted)")]


def half(
    client: httpx2.Client, path: str = "/chat/main/files/half", size: int = 1000, method: str = "PUT"
) -> http.client.HTTPConnection:
    """Begin to send a file, and stop in the middle."""
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
    connection.putrequest(method, path)
    connection.putheader("Authorization", client.headers["Authorization"])
    connection.putheader("Content-Length", str(size))
    connection.endheaders(b"x" * 500)
    return connection


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_host_leaves_the_old_file_or_the_new_one(
    model: ModelProcess, tmp_path: Path, kills: int
) -> None:
    process = new_host(tmp_path, model.url).start()
    workspace = Path(process.environment["MEMORY_DIR"])
    old, new = os.urandom(3 * MIB), os.urandom(3 * MIB)
    (workspace / "x").write_bytes(old)
    for cut in (number % 5 + 1 for number in range(kills)):
        with process.client() as client, contextlib.suppress(httpx2.TransportError):
            length = {"Content-Length": str(len(new))} if cut % 2 else {}
            client.put("/chat/main/files/x", content=dying(process, new, cut), headers=length)
        assert (workspace / "x").read_bytes() in (old, new)
        assert [path.name for path in workspace.iterdir() if path.name.startswith(".")] == []
        process.start()
    process.kill()


def dying(process: HostProcess, content: bytes, cut: int) -> Iterator[bytes]:
    """Yield the content, and kill the host in the middle of it."""
    size = len(content) // 6
    yield content[: size * cut]
    process.kill()
    yield content[size * cut :]


def test_a_full_disk_keeps_what_is_there_and_gets_nothing_of_what_does_not_fit(
    model: ModelProcess, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=1777", "none", str(disk)]
    if subprocess.run(options, check=False, capture_output=True).returncode:
        pytest.skip("needs to mount")
    process = new_host(tmp_path / "host", model.url, {"MEMORY_DIR": str(disk)}).start()
    try:
        with process.client() as client:
            assert client.put("/chat/main/files/x", content=b"old").status_code == 201
            full = client.put("/chat/main/files/x", content=b"n" * (9 * MIB))
            assert (full.status_code, full.json()["code"]) == (507, "disk_full")
            form = {"a": ("a", b"a"), "b": ("b", b"n" * (9 * MIB))}
            full = client.post("/chat/main/files?path=.", files=form)
            assert (full.status_code, full.json()["code"]) == (507, "disk_full"), full.text
            assert (disk / "x").read_bytes() == b"old"
            kept = {path.name for path in disk.rglob("*") if path.is_file()}
            assert "a" not in kept
            assert not [name for name in kept if name.startswith(".picoclaw-")]
            assert client.put("/chat/main/files/y", content=b"fits").status_code == 201
    finally:
        process.kill()
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("length", [{}, {"Content-Length": str(64 * MIB)}], ids=["chunked", "plain"])
def test_a_large_file_goes_through_a_flat_host(
    model: ModelProcess, tmp_path: Path, length: dict[str, str]
) -> None:
    """64 MiB here; a gigabyte takes as much memory."""
    process = new_host(tmp_path, model.url).start()
    assert process.process is not None
    memory = psutil.Process(process.process.pid)
    piece, count = os.urandom(MIB), 64
    with process.client() as client:
        client.put("/chat/main/files/warm", content=piece * 4)
        assert client.get("/chat/main/files/warm").content == piece * 4
        before = memory.memory_info().rss
        made = client.put("/chat/main/files/large", content=iter([piece] * count), headers=length)
        assert made.json()["sha256"] == hashlib.sha256(piece * count).hexdigest()
        digest, most = hashlib.sha256(), 0
        with client.stream("GET", "/chat/main/files/large") as got:
            for data in got.iter_raw():
                digest.update(data)
                most = max(most, memory.memory_info().rss)
        assert digest.hexdigest() == made.json()["sha256"]
    assert most - before < 8 * MIB
    process.kill()


@pytest.mark.parametrize("races", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_links_that_are_swapped_while_files_are_fetched_show_nothing_of_outside(
    model: ModelProcess, tmp_path: Path, races: int
) -> None:
    process = new_host(tmp_path / "host", model.url).start()
    workspace = Path(process.environment["MEMORY_DIR"])
    for place, content in ((tmp_path / "out", "secret"), (workspace / "in", "inside")):
        place.mkdir()
        (place / "x").write_text(content)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            for target in ("in", tmp_path / "out"):
                (workspace / "new").symlink_to(target)
                (workspace / "new").rename(workspace / "link")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        with process.client() as client:
            for _ in range(races):
                got = client.get("/chat/main/files/link/x")
                assert got.text == "inside" or got.status_code in (400, 404)
                put = client.put("/chat/main/files/link/y", content=b"y")
                assert put.status_code in (200, 201, 400, 404), put.text
    finally:
        ended.set()
        swapper.join()
        process.kill()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
