"""Files of a conversation's workspace over HTTP: brought whole or not at all, fetched as they are."""

from __future__ import annotations

import hashlib
import http.client
import io
import itertools
import json
import os
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.running import TOKEN, HostProcess, ModelProcess, new_host


@pytest.fixture(scope="module")
def host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = new_host(tmp_path_factory.mktemp("files"), model.url, {"PICOCLAW_FILES_MAX_MB": "4"})
    yield process.start()
    process.kill()


@pytest.fixture
def client(host: HostProcess) -> Iterator[httpx2.Client]:
    with host.client() as client:
        yield client


@pytest.fixture
def workspace(host: HostProcess) -> Path:
    return Path(host.environment["MEMORY_DIR"])


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


def test_a_file_comes_back_as_it_was_brought(client: httpx2.Client, workspace: Path) -> None:
    content = os.urandom(3_000_001)
    made = client.put("/chat/main/files/a/b/data.bin", content=content)
    assert made.status_code == 201, made.text
    digest = hashlib.sha256(content).hexdigest()
    assert made.json() == {"path": "a/b/data.bin", "size": len(content), "sha256": digest}
    assert (workspace / "a/b/data.bin").read_bytes() == content
    got = client.get("/chat/main/files/a/b/data.bin")
    assert got.content == content
    assert got.headers["etag"] == made.headers["etag"]
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-disposition"].startswith("attachment")
    head = client.head("/chat/main/files/a/b/data.bin?sha256=true")
    assert (head.headers["content-length"], head.headers["x-content-sha256"]) == (str(len(content)), digest)
    again = client.put("/chat/main/files/a/b/data.bin", content=iter([b"new", b"er"]))
    assert (again.status_code, again.json()["size"]) == (200, 5)
    assert (workspace / "a/b/data.bin").read_bytes() == b"newer"
    assert client.get("/chat/main/files/a/b/data.bin").content == b"newer"


def test_a_connection_goes_on_behind_its_uploads(host: HostProcess) -> None:
    """All of it is sent at once, so each request begins where the one before it ends."""
    contents = [os.urandom(4 << 20), os.urandom((3 << 20) + 1), b"", b"small"]
    token = f"Host: a\r\nAuthorization: Bearer {TOKEN}\r\n"
    sent = b""
    for number, content in enumerate(contents):
        path = f"/chat/main/files/behind/{number} HTTP/1.1\r\n{token}"
        sent += f"PUT {path}Content-Length: {len(content)}\r\n\r\n".encode() + content
        sent += f"GET {path}\r\n".encode()
    sent += f"GET /nothing HTTP/1.1\r\n{token}Connection: close\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", host.port), 60) as peer:
        sender = threading.Thread(target=peer.sendall, args=(sent,))
        sender.start()
        got = b"".join(iter(lambda: peer.recv(1 << 20), b""))
        sender.join()
    heads = [got.find(b"HTTP/1.1 ")]
    for content in contents:
        heads += [got.find(b"HTTP/1.1 200 ", heads[-1] + 1)]
        heads += [got.find(b"HTTP/1.1 ", heads[-1] + len(content) + 1)]
    statuses = [got[at + 9 : at + 12] for at in heads]
    assert statuses == [*[b"201", b"200"] * len(contents), b"404"]
    bodies = [got[first:last].partition(b"\r\n\r\n")[2] for first, last in itertools.pairwise(heads)]
    assert bodies[1::2] == contents


BAD = [
    *("../x", "a/../x", "./x", "a/./x", "a//x", "/x", "a/", "", "%2Fetc%2Fpasswd", "a%2Fb", "a%00b", "%FF"),
    *("x" * 256, "/".join("d" * 33), "a%5Cb", "a%0Ab", "a%0A"),
]


@pytest.mark.parametrize("path", BAD)
def test_a_path_that_is_none_is_refused_naming_it(client: httpx2.Client, workspace: Path, path: str) -> None:
    before = sorted(workspace.rglob("*"))
    for method in ("PUT", "GET", "DELETE"):
        if method != "PUT" and path in ("a%5Cb", "a%0Ab", "a%0A"):
            continue  # an agent may have made one
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
        token = {"Authorization": client.headers["Authorization"]}
        connection.request(method, f"/chat/main/files/{path}", b"x" if method == "PUT" else None, token)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        assert (answer.status, said["error"][:6]) == (400, "path: "), (method, said)
        connection.close()
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize("path", ["main%2Ffiles%2Fslash", "main%2Ffiles/slash", "main/files%2Fslash"])
def test_an_address_that_hides_a_slash_names_no_file(client: httpx2.Client, path: str) -> None:
    client.put("/chat/main/files/slash", content=b"kept")
    assert code(client.delete(f"/chat/{path}")) == (404, "not_found")
    assert client.get("/chat/main/files/slash").content == b"kept"


@pytest.mark.parametrize("path", ["a%07b", "a%5Cb", "early/a%07/b"])
def test_a_name_that_nothing_new_can_have_is_refused_before_the_file_comes(
    host: HostProcess, workspace: Path, path: str
) -> None:
    head = f"PUT /chat/main/files/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    with socket.create_connection(("127.0.0.1", host.port), 60) as peer:
        peer.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())
        assert peer.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
    assert not (workspace / "early").exists()


def test_names_are_taken_as_they_are(client: httpx2.Client, workspace: Path) -> None:
    for said, name in (
        ("~", "~"),
        ("%C3%A9", "é"),
        ("e%CC%81", "e\u0301"),
        ("a%20b%3F", "a b?"),
        ("%7Eann", "~ann"),
        ("%22%3B", '";'),
    ):
        url = httpx2.URL(client.base_url, raw_path=f"/chat/main/files/names/{said}".encode())
        assert client.put(url, content=name.encode()).json()["path"] == f"names/{name}"
        assert (workspace / "names" / name).read_text() == name
        assert client.get(url).text == name


def test_a_file_that_an_agent_gave_an_odd_name_is_read_and_removed(
    client: httpx2.Client, workspace: Path
) -> None:
    for said, name in (("a%0Ab%0D%0AX-Sly: 1%0A", "a\nb\r\nX-Sly: 1\n"), ("%22%09%5C", '"\t\\')):
        (workspace / name).write_text("odd")
        assert name in [each["path"] for each in client.get("/chat/main/files").json()["files"]]
        url = httpx2.URL(client.base_url, raw_path=f"/chat/main/files/{said}".encode())
        answer = client.get(url)
        assert (answer.text, "x-sly" in answer.headers) == ("odd", False)
        assert client.delete(url).status_code == 204
        assert not (workspace / name).exists()


def test_what_leads_out_or_is_no_file_is_refused(
    client: httpx2.Client, workspace: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    odd = workspace / "odd"
    odd.mkdir()
    (odd / "out").symlink_to(outside)
    (odd / "file").symlink_to(outside / "secret")
    (odd / "up").symlink_to("../../..")
    (odd / "loop").symlink_to("loop")
    (odd / "null").symlink_to("/dev/null")
    os.mkfifo(odd / "fifo")
    for path in ("out/secret", "file", "up/x", "loop", "fifo", "null"):
        for method in ("GET", "PUT"):
            answer = client.request(method, f"/chat/main/files/odd/{path}", content=b"mine")
            assert answer.status_code in (400, 404), (method, path, answer.text)
            assert f"odd/{path}" in answer.json()["error"]
    assert client.delete("/chat/main/files/odd/out/secret").status_code == 400
    assert (outside / "secret").read_text() == "secret"
    assert code(client.get("/chat/main/files/odd")) == (409, "is_directory")
    assert code(client.put("/chat/main/files/odd", content=b"x")) == (409, "is_directory")
    assert code(client.get("/chat/main/files/odd/nothing")) == (404, "not_found")
    listed = client.get("/chat/main/files?prefix=odd/").json()["files"]
    assert {entry["type"] for entry in listed} == {"link", "other"}
    assert len(listed) == 6
    for name in ("out", "file", "fifo"):
        assert client.delete(f"/chat/main/files/odd/{name}").status_code == 204
    assert outside.is_dir()
    (odd / "inside").symlink_to("target")
    (odd / "target").write_text("here")
    assert client.get("/chat/main/files/odd/inside").text == "here"


def test_conditions_hold_when_the_file_is_put_in_place(client: httpx2.Client) -> None:
    url = "/chat/main/files/conditions/x"
    assert code(client.put(url, content=b"1", headers={"If-Match": "*"})) == (412, "precondition_failed")
    first = client.put(url, content=b"1", headers={"If-None-Match": "*"})
    assert first.status_code == 201
    assert code(client.put(url, content=b"2", headers={"If-None-Match": "*"})) == (412, "precondition_failed")
    tag = first.headers["etag"]
    second = client.put(url, content=b"2", headers={"If-Match": tag})
    assert second.status_code == 200
    for method in ("PUT", "DELETE", "GET"):
        content = b"3" if method == "PUT" else None
        answer = client.request(method, url, content=content, headers={"If-Match": tag})
        assert code(answer) == (412, "precondition_failed")
    assert client.get(url, headers={"If-None-Match": second.headers["etag"]}).status_code == 304
    assert code(client.put(url, content=b"3", headers={"If-Match": "bare"})) == (400, "invalid_request")
    twice = [("If-None-Match", '"other"'), ("If-None-Match", "*")]
    assert code(client.put(url, content=b"3", headers=twice)) == (412, "precondition_failed")
    assert client.get(url).text == "2"
    assert client.delete(url, headers={"If-Match": second.headers["etag"]}).status_code == 204


def test_ranges_are_parts_of_the_file(client: httpx2.Client) -> None:
    url = "/chat/main/files/range"
    tag = client.put(url, content=b"0123456789").headers["etag"]
    for said, part, told in (
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
    ):
        got = client.get(url, headers={"Range": said})
        assert (got.status_code, got.content, got.headers["content-range"]) == (206, part, told)
    for said in ("bytes=0-1,3-4", "bytes=4-2", "bytes=x", "lines=1-2", "bytes=-"):
        got = client.get(url, headers={"Range": said})
        assert (got.status_code, got.content) == (200, b"0123456789"), said
    refused = client.get(url, headers={"Range": "bytes=10-"})
    assert (*code(refused), refused.headers["content-range"]) == (416, "range", "bytes */10")
    assert code(client.get(url, headers={"Range": "bytes=-0"})) == (416, "range")
    assert client.get(url, headers={"Range": "bytes=0-1", "If-Range": tag}).status_code == 206
    assert client.get(url, headers={"Range": "bytes=0-1", "If-Range": '"old"'}).status_code == 200


def test_a_browser_saves_what_it_could_run(client: httpx2.Client) -> None:
    for name, kind in (
        ("x.html", "application/octet-stream"),
        ("x.svg", "application/octet-stream"),
        ("x.png", "image/png"),
        ("x.csv", "text/csv"),
        ("x", "application/octet-stream"),
    ):
        client.put(f"/chat/main/files/types/{name}", content=b"x")
        assert client.head(f"/chat/main/files/types/{name}").headers["content-type"].split(";")[0] == kind
    client.put('/chat/main/files/types/é".txt', content=b"x")
    said = client.get('/chat/main/files/types/é".txt').headers["content-disposition"]
    assert said == "attachment; filename=\"__.txt\"; filename*=UTF-8''%C3%A9%22.txt"


def test_a_file_over_the_limit_leaves_nothing(client: httpx2.Client, workspace: Path) -> None:
    for content in (bytes((4 << 20) + 1), iter([bytes(1 << 20)] * 5)):
        assert code(client.put("/chat/main/files/large", content=content)) == (413, "file_too_large")
    assert not (workspace / "large").exists()
    assert client.put("/chat/main/files/large", content=bytes(4 << 20)).status_code == 201
    refused = client.put("/chat/main/files/large", content=b"x", headers={"Content-Range": "bytes 0-0/2"})
    assert code(refused) == (400, "invalid_request")
    assert "files/large" not in client.get("/chat/main/files?prefix=.").text


def test_pages_of_files_neither_double_nor_lose_what_stays(client: httpx2.Client, workspace: Path) -> None:
    names = ["p/a", "p/a-b", "p/a/x", "p/a/y/z", "p/a/y", "p/a0", "p/B", "p/é"]
    (workspace / "p/a/y").mkdir(parents=True)
    for name in ("p/a-b", "p/a/x", "p/a/y/z", "p/a0", "p/B", "p/é"):
        (workspace / name).write_text("x")
    whole = client.get("/chat/main/files?prefix=p/").json()
    assert [entry["path"] for entry in whole["files"]] == sorted(names, key=str.encode)
    assert (whole["next_cursor"], whole["incomplete"]) == (None, False)
    assert whole["files"][0] | {"modified_at": ""} == {
        "path": "p/B",
        "size": 1,
        "modified_at": "",
        "type": "file",
    }
    seen, cursor = [], ""
    while cursor is not None:
        page = client.get("/chat/main/files", params={"prefix": "p/", "limit": 2, "cursor": cursor}).json()
        seen += [entry["path"] for entry in page["files"]]
        (workspace / "p" / f"A{len(seen)}").write_text("behind")
        cursor = page["next_cursor"]
    assert [name for name in seen if not name.startswith("p/A")] == sorted(names, key=str.encode)
    assert len(seen) == len(set(seen))
    inside = client.get("/chat/main/files?prefix=p/a/").json()["files"]
    assert [entry["path"] for entry in inside] == ["p/a/x", "p/a/y", "p/a/y/z"]
    assert client.get("/chat/main/files?prefix=p/nothing").json()["files"] == []


def test_directories_go_only_when_empty_or_when_it_is_said(client: httpx2.Client, workspace: Path) -> None:
    client.put("/chat/main/files/tree/a/b", content=b"x")
    assert code(client.delete("/chat/main/files/tree")) == (409, "not_empty")
    assert client.delete("/chat/main/files/tree/a/b").status_code == 204
    assert client.delete("/chat/main/files/tree/a").status_code == 204
    client.put("/chat/main/files/tree/c/d/e", content=b"x")
    (workspace / "tree/link").symlink_to(workspace / "kept")
    (workspace / "kept").mkdir()
    (workspace / "kept/x").write_text("kept")
    assert client.delete("/chat/main/files/tree?recursive=true").status_code == 204
    assert not (workspace / "tree").exists()
    assert (workspace / "kept/x").read_text() == "kept"
    assert code(client.delete("/chat/main/files/tree")) == (404, "not_found")


def test_a_move_takes_no_file_s_place(client: httpx2.Client, workspace: Path) -> None:
    client.put("/chat/main/files/from", content=b"from")
    client.put("/chat/main/files/taken", content=b"taken")
    moved = client.post("/chat/main/files/from", json={"move_to": "new/place"})
    assert (moved.status_code, moved.json()) == (200, {"path": "new/place"})
    assert not (workspace / "from").exists()
    taken = client.post("/chat/main/files/new/place", json={"move_to": "taken"})
    assert code(taken) == (409, "exists")
    assert client.get("/chat/main/files/new/place").text == "from"
    assert code(client.post("/chat/main/files/none", json={"move_to": "x"})) == (404, "not_found")
    for wrong in ("../x", "/x", "a//b", "x" * 300, "a\x07", "a\x07/b", "a\\b", "taken/x"):
        refused = client.post("/chat/main/files/taken", json={"move_to": wrong})
        assert code(refused) == (400, "invalid_request")
        assert refused.json()["error"].startswith("move_to: ")
    into_itself = client.post("/chat/main/files/new", json={"move_to": "new/other/in"})
    assert into_itself.json()["error"] == "move_to: lies within what is to be moved"
    assert not (workspace / "new/other").exists()


def test_a_form_one_of_whose_files_has_no_place_says_which_were_stored(client: httpx2.Client) -> None:
    client.put("/chat/main/files/forms/taken/x", content=b"x")
    files = [("f", (name, b"y")) for name in ("first", "taken", "last")]
    refused = client.post("/chat/main/files?path=forms", files=files)
    assert (refused.status_code, refused.json()["code"]) == (409, "is_directory")
    assert refused.json()["error"].endswith("; before it were stored: forms/first")
    assert client.get("/chat/main/files/forms/first").content == b"y"
    assert client.get("/chat/main/files/forms/last").status_code == 404


def test_what_has_to_hold_of_a_file_holds_for_those_of_a_form(client: httpx2.Client) -> None:
    url, once = "/chat/main/files?path=held", {"If-None-Match": "*"}
    assert client.post(url, files={"f": ("a", b"1")}, headers=once).status_code == 201
    assert code(client.post(url, files={"f": ("a", b"2")}, headers=once)) == (412, "precondition_failed")
    other = client.post(url, files={"f": ("a", b"2")}, headers={"If-Match": '"another"'})
    assert code(other) == (412, "precondition_failed")
    assert client.get("/chat/main/files/held/a").content == b"1"


def test_a_time_that_has_to_hold_of_a_file_is_refused(client: httpx2.Client) -> None:
    headers, url = {"If-Unmodified-Since": "Mon, 30 Nov 2020 00:00:00 GMT"}, "/chat/main/files/timed"
    client.put(url, content=b"1")
    for method in ("PUT", "DELETE"):
        refused = client.request(method, url, headers=headers)
        assert code(refused) == (400, "invalid_request")
        assert refused.json()["error"].startswith("If-Unmodified-Since: ")
    assert client.get(url).content == b"1"


def test_a_form_brings_several_files_at_once(client: httpx2.Client, workspace: Path) -> None:
    contents = {"one.txt": b"1" * 100_000, "two é.bin": os.urandom(2_000_000)}
    sent = client.post("/chat/main/files", files=[("file", item) for item in contents.items()])
    assert sent.status_code == 201, sent.text
    assert [item["path"] for item in sent.json()["files"]] == ["inbox/one.txt", "inbox/two é.bin"]
    for name, content in contents.items():
        assert (workspace / "inbox" / name).read_bytes() == content
    named = client.post("/chat/main/files", files={"f": ("x", b"x")}, data={"path": "form/deep/"})
    assert named.json()["files"][0]["path"] == "form/deep/x"
    asked = client.post("/chat/main/files?path=asked", files={"f": ("x", b"x")})
    assert asked.json()["files"][0]["path"] == "asked/x"
    before = sorted(workspace.rglob("*"))
    for files, data in (
        ([("f", ("a/b", b"x"))], {}),
        ([("f", ("..", b"x"))], {}),
        ([("f", ("x", b"x")), ("f", ("x", b"y"))], {}),
        ([("f", ("x", b"x"))], {"path": "../out"}),
        ([("f", ("x", b"x"))], {"other": "1"}),
    ):
        assert code(client.post("/chat/main/files", files=files, data=data)) == (400, "invalid_request")
    cut = b"--b\r\nContent-Disposition: form-data; name=f; filename=cut\r\n\r\nhalf"
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert code(client.post("/chat/main/files", content=cut, headers=form)) == (400, "invalid_request")
    assert code(client.post("/chat/main/files", content=b"x", headers=form)) == (400, "invalid_request")
    long = {"Content-Type": f"multipart/form-data; boundary={'b' * 300}"}
    assert code(client.post("/chat/main/files", content=cut, headers=long)) == (400, "invalid_request")
    part = b"--b\r\nContent-Disposition: form-data; name=f; filename=packed\r\n"
    packed = part + b"Content-Transfer-Encoding: base64\r\n\r\naGk=\r\n--b--\r\n"
    assert code(client.post("/chat/main/files", content=packed, headers=form)) == (400, "invalid_request")
    assert client.get("/chat/main/files/inbox/packed").status_code == 404
    assert code(client.post("/chat/main/files", json={})) == (415, "unsupported_media_type")
    large = {"f": ("large", bytes((4 << 20) + 1))}
    assert code(client.post("/chat/main/files", files=large)) == (413, "file_too_large")
    assert sorted(workspace.rglob("*")) == before


def test_files_belong_to_a_conversation(client: httpx2.Client) -> None:
    answer = client.post("/files", content=b"x")
    assert code(answer) == (404, "not_found")
    assert "begin one" in answer.json()["error"]
    for method in ("GET", "PUT", "DELETE"):
        assert code(client.request(method, "/chat/none/files/x")) == (404, "not_found")
    assert code(client.get("/chat/none/files")) == (404, "not_found")


def test_the_archive_is_the_host_s_alone(client: httpx2.Client, workspace: Path) -> None:
    (workspace / "conversations").mkdir(exist_ok=True)
    (workspace / "conversations/1.md").write_text("said")
    (workspace / "alias").symlink_to("conversations")
    for path in ("conversations/1.md", "conversations/new", "alias/1.md", "Conversations/x"):
        assert code(client.put(f"/chat/main/files/{path}", content=b"x")) == (403, "read_only"), path
    assert code(client.delete("/chat/main/files/conversations?recursive=true")) == (403, "read_only")
    assert code(client.post("/chat/main/files/conversations", json={"move_to": "x"})) == (403, "read_only")
    client.put("/chat/main/files/mine", content=b"x")
    into = client.post("/chat/main/files/mine", json={"move_to": "conversations/x"})
    assert code(into) == (403, "read_only")
    assert client.get("/chat/main/files/conversations/1.md").text == "said"


def opened(answer: httpx2.Response) -> dict[str, bytes | None]:
    """Return the files of an archive, None for a directory."""
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        found = {entry.name: archive.extractfile(entry) for entry in archive}
        return {name: None if file is None else file.read() for name, file in found.items()}


def test_a_folder_comes_as_an_archive(client: httpx2.Client, workspace: Path) -> None:
    deep = "results/" + "/".join(["größe" * 20] * 3) + "/ende.bin"
    files = {"results/a.txt": b"a", "results/none": b"", deep: os.urandom(600_001), "resultsless": b"no"}
    files |= {f"results/many/{number:04}": b"%d" % number for number in range(1200)}
    for path, content in files.items():
        (workspace / path).parent.mkdir(parents=True, exist_ok=True)
        (workspace / path).write_bytes(content)
    (workspace / "results/link").symlink_to("/etc/passwd")
    (workspace / "results/empty").mkdir()
    got = client.get("/chat/main/files", params={"prefix": "results/", "format": "tar"})
    assert got.status_code == 200, got.text
    assert got.headers["content-type"] == "application/x-tar"
    assert 'filename="results.tar"' in got.headers["content-disposition"]
    found = opened(got)
    assert {path: content for path, content in found.items() if content is not None} == {
        path: content for path, content in files.items() if path != "resultsless"
    }
    assert found["results/empty"] is None
    assert "results/link" not in found
    (workspace / os.fsdecode(b"results/\xff")).write_bytes(b"x")
    told = opened(client.get("/chat/main/files", params={"prefix": "results/", "format": "tar"}))
    said = told.pop("LEFT-OUT.txt") or b""
    assert said.splitlines()[0].endswith(b"Links are left out of every archive.")
    assert said.endswith(b"a name that isn't UTF-8.\n")
    assert told == found
    bad = client.get("/chat/main/files", params={"prefix": "results/", "format": "zip"})
    assert (bad.status_code, bad.json()["error"].partition(":")[0]) == (400, "format")
    assert code(client.get("/chat/main/files?prefix=nothing/&format=tar")) == (404, "not_found")


def test_an_archive_names_the_files_that_it_lacks(client: httpx2.Client, workspace: Path) -> None:
    folder = workspace / "parts"
    folder.mkdir()
    for name in ("here", "one"):
        (folder / name).write_text(name)
    os.link(folder / "one", folder / "two")
    os.mkfifo(folder / "pipe")
    found = opened(client.get("/chat/main/files", params={"prefix": "parts/", "format": "tar"}))
    assert (found.pop("LEFT-OUT.txt") or b"").decode().splitlines()[1:] == [
        "parts/one has several hard links, one of which may lie outside the workspace",
        "parts/pipe is not a regular file (fifo)",
        "parts/two has several hard links, one of which may lie outside the workspace",
    ]
    assert found == {"parts/here": b"here"}


def test_what_moves_and_what_is_refused_is_counted(client: httpx2.Client) -> None:
    client.put("/chat/main/files/counted", content=b"x" * 1000)
    client.get("/chat/main/files/counted")
    client.put("/chat/main/files/counted", content=b"y", headers={"If-None-Match": "*"})
    told = client.get("/metrics").text
    assert 'picoclaw_file_bytes_total{direction="up"}' in told
    assert 'picoclaw_file_bytes_total{direction="down"}' in told
    assert 'picoclaw_files_refused_total{code="precondition_failed"}' in told
    assert "picoclaw_file_streams 0.0" in told


@pytest.mark.parametrize("how", ["replaced", "deleted", "changed"])
def test_a_download_ends_whole_unless_the_file_itself_changes(
    host: HostProcess, client: httpx2.Client, workspace: Path, how: str
) -> None:
    # More than what lies between the host and a peer that doesn't read: the kernel keeps 4 MiB at most.
    content = os.urandom(32 << 20)
    url = f"/chat/main/files/{how}.bin"
    (workspace / f"{how}.bin").write_bytes(content)
    asked = f"GET {url} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", host.port))
        slow.sendall(asked.encode())
        got = bytearray(slow.recv(1000))
        if how == "replaced":
            assert client.put(url, content=b"new").status_code == 200
        elif how == "deleted":
            assert client.delete(url).status_code == 204
        else:
            with (workspace / f"{how}.bin").open("r+b") as file:
                file.write(b"other")
        while piece := slow.recv(1 << 16):
            got += piece
    body = got.partition(b"\r\n\r\n")[2]
    assert content.startswith(body)
    assert (len(body) == len(content)) == (how != "changed")
