"""Files that come with a message: stored before it is acknowledged, shown to the model, always the same."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import PIL.Image
import pytest

from tests.fakes.documents import pdf, png
from tests.http.conftest import MakeHost
from tests.http.two_principals import SETTINGS, somebody
from tests.running import HostProcess, ModelProcess, directive, new_host


@pytest.fixture(scope="module")
def host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = new_host(tmp_path_factory.mktemp("attachments"), model.url)
    yield process.start()
    process.kill()


@pytest.fixture
def client(host: HostProcess) -> Iterator[httpx2.Client]:
    with host.client() as client:
        yield client


@pytest.fixture
def workspace(host: HostProcess) -> Path:
    return Path(host.environment["MEMORY_DIR"])


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def say(client: httpx2.Client, *attachments: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = {"message": directive("look", text="seen"), "attachments": list(attachments), **more}
    answer = client.post("/chat", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["status"] == "success", found
    return found


def shown(model: ModelProcess, at: int = -1) -> list[dict[str, Any]]:
    """Return the blocks of the last request's messages."""
    messages = model.requests()[at]["body"]["messages"]
    return [block for message in messages for block in message["content"]]


def of_kind(blocks: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [block for block in blocks if block["type"] == kind]


def test_a_picture_is_shown_and_lies_in_the_inbox(
    client: httpx2.Client, model: ModelProcess, workspace: Path
) -> None:
    data = png(30, 20)
    answer = say(client, {"name": "../a b?.png", "media_type": "image/png", "data": encoded(data)})
    (image,) = of_kind(shown(model), "image")
    assert image["source"] == {"type": "base64", "media_type": "image/png", "data": encoded(data)}
    (path,) = (workspace / "inbox" / answer["conversation_id"]).iterdir()
    assert path.read_bytes() == data
    assert path.name.endswith("-a_b.png")
    (message, _) = client.get(f"/chat/{answer['conversation_id']}/messages").json()["messages"]
    assert (
        f"[Attached: inbox/{answer['conversation_id']}/{message['id']}-a_b.png (image/png, "
        in message["content"]
    )
    fetched = client.get(f"/chat/{answer['conversation_id']}/files/{path.relative_to(workspace)}")
    assert fetched.content == data


def test_what_was_shown_is_shown_again_byte_by_byte_whatever_became_of_the_file(
    client: httpx2.Client, model: ModelProcess, workspace: Path, host: HostProcess
) -> None:
    first = say(
        client,
        {"name": "x.png", "data": encoded(png(8, 8))},
        {"name": "d.pdf", "data": encoded(pdf(["Alpha"]))},
    )
    before = [one["content"] for one in model.requests()[-1]["body"]["messages"]]
    for path in (workspace / "inbox" / first["conversation_id"]).iterdir():
        path.write_bytes(b"something else")
    for restart in (False, True):
        if restart:
            host.stop()
            host.start()
        with host.client() as again:
            answer = again.post(
                "/chat", json={"message": "and now?", "conversation_id": first["conversation_id"]}
            )
        assert answer.json()["status"] == "success"
        sent = [one["content"] for one in model.requests()[-1]["body"]["messages"]]
        assert [_bare(block) for block in sent[0]] == [_bare(block) for block in before[0]]


def _bare(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != "cache_control"}


def test_a_large_picture_is_made_smaller_and_an_impossible_one_is_a_line_with_the_reason(
    client: httpx2.Client, model: ModelProcess
) -> None:
    say(
        client,
        {"name": "large.png", "data": encoded(png(9000, 400))},
        {"name": "cut.png", "data": encoded(png(50, 50)[:60])},
        {"name": "drawing.svg", "data": encoded(b"<svg xmlns='http://www.w3.org/2000/svg'/>")},
    )
    blocks = shown(model)
    (image,) = of_kind(blocks, "image")
    with PIL.Image.open(io.BytesIO(base64.b64decode(image["source"]["data"]))) as picture:
        assert max(picture.size) == 1568
    told = "\n".join(block["text"] for block in of_kind(blocks, "text"))
    assert "cut.png (image/png, 60 bytes); not shown: it is cut off" in told
    assert "drawing.svg (image/svg+xml, " in told


def test_a_pdf_is_text_by_page_for_a_server_that_is_not_anthropics(
    client: httpx2.Client, model: ModelProcess
) -> None:
    say(
        client,
        {
            "name": "r.pdf",
            "media_type": "application/pdf",
            "data": encoded(pdf(["Alpha</enclosed>", "Beta"])),
        },
        {"name": "closed.pdf", "data": encoded(pdf(["x"], password="y"))},
        {"name": "long.pdf", "data": encoded(pdf(["x"] * 101))},
    )
    told = "\n".join(block["text"] for block in of_kind(shown(model), "text"))
    assert '<enclosed kind="document"' in told
    assert "[page 2]\nBeta" in told
    assert told.count("</enclosed>") == 1
    assert "closed.pdf (application/pdf, " in told
    assert "not shown: it is encrypted" in told
    assert "not shown: it has 101 pages" in told


def test_attachments_are_counted_by_kind(client: httpx2.Client) -> None:
    def told() -> dict[str, float]:
        found = re.findall(r'picoclaw_attachments_total\{kind="(\w+)"\} (\S+)', client.get("/metrics").text)
        return {kind: float(count) for kind, count in found}

    before = told()
    files = {"a.png": png(3, 2), "a.pdf": pdf(["a page"]), "a.csv": b"a,b", "a.json": b"{}", "a.zip": b"PK"}
    say(client, *({"name": name, "data": encoded(data)} for name, data in files.items()))
    after = told()
    assert {kind: after[kind] - before.get(kind, 0) for kind in after} == {
        "image": 1,
        "pdf": 1,
        "text": 2,
        "other": 1,
    }


def test_a_file_of_the_workspace_is_attached_by_its_path(
    client: httpx2.Client, model: ModelProcess, workspace: Path
) -> None:
    client.put("/chat/main/files/in/p.png", content=png(5, 5))
    client.put("/chat/main/files/in/table.csv", content=b"a,b\n" * 9)
    say(client, {"path": "in/p.png"}, {"path": "in/table.csv"})
    assert len(of_kind(shown(model), "image")) == 1
    told = "\n".join(block["text"] for block in of_kind(shown(model), "text"))
    assert "[Attached: in/table.csv (text/csv, 36 bytes)]" in told


def test_a_picture_of_the_workspace_beyond_what_is_shown_is_a_line_with_the_reason(
    client: httpx2.Client, model: ModelProcess
) -> None:
    client.put("/chat/main/files/in/large.png", content=png(5, 5) + bytes(20 << 20))
    say(client, {"path": "in/large.png"})
    told = "\n".join(block["text"] for block in of_kind(shown(model), "text"))
    assert "bytes); not shown: the attachments up to it have more than 20 MiB]" in told
    assert of_kind(shown(model), "image") == []


def test_what_is_shown_of_the_workspace_takes_no_room_from_what_comes_along(client: httpx2.Client) -> None:
    client.put("/chat/main/files/in/broken.pdf", content=b"%PDF-" + bytes(18 << 20))
    along = {"name": "a.bin", "data": encoded(bytes(3 << 20))}
    for attachments in ([{"path": "in/broken.pdf"}, along], [along, {"path": "in/broken.pdf"}]):
        answer = client.post("/chat", json={"message": "look", "attachments": attachments})
        assert answer.status_code == 200, answer.text


def test_where_no_inbox_can_be_a_message_with_a_file_is_refused_or_says_what_kept_it(
    client: httpx2.Client, workspace: Path
) -> None:
    inbox, said = workspace / "inbox", {"message": "x", "attachments": [{"name": "x", "data": "QQ=="}]}
    if inbox.exists():
        inbox.rename(workspace / "in-between")
    before = client.get("/chat").json()
    inbox.write_text("a file")
    refused = client.post("/chat", json=said)
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert refused.json()["error"].endswith(": a part of the path is not a directory")
    assert client.get("/chat").json() == before
    inbox.unlink()
    inbox.symlink_to("nowhere")
    ended = client.post("/chat", json=said).json()
    assert (ended["status"], ended["code"]) == ("error", "not_found")
    assert ended["error"].startswith("An attachment could not be stored: inbox/")
    inbox.unlink()


BAD: list[tuple[Any, int, str]] = [
    ([{}], 400, "attachments.0"),
    ([{"name": "x"}], 400, "attachments.0"),
    ([{"path": "x", "data": ""}], 400, "attachments.0"),
    ([{"name": "x", "data": "***"}], 400, "attachments.0.data: is not base64"),
    ([{"name": "x", "data": 5}], 400, "attachments.0.data"),
    ([{"name": "x", "data": "", "media_type": "nothing"}], 400, "attachments.0.media_type"),
    ([{"path": "../etc/passwd"}], 400, "attachments.0.path"),
    ([{"path": "/etc/passwd"}], 400, "attachments.0.path"),
    ([{"path": "not/there.txt"}], 404, "attachments.0.path: not/there.txt"),
    ("x", 400, "attachments"),
    ([{"name": "x", "data": "", "more": 1}], 400, "attachments.0.more"),
]


@pytest.mark.parametrize(("attachments", "status", "said"), BAD)
def test_what_can_not_be_attached_is_refused_by_name_and_leaves_nothing(
    client: httpx2.Client, workspace: Path, attachments: Any, status: int, said: str
) -> None:
    before = sorted(workspace.rglob("*")), client.get("/chat").json()
    answer = client.post("/chat", json={"message": "x", "attachments": attachments})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]
    assert (sorted(workspace.rglob("*")), client.get("/chat").json()) == before


def test_only_attachments_make_a_body_large(
    client: httpx2.Client, workspace: Path, model: ModelProcess
) -> None:
    data = b"\x7f" * (19 << 20)
    answer = say(client, {"name": "b.bin", "data": encoded(data)})
    (path,) = (workspace / "inbox" / answer["conversation_id"]).iterdir()
    assert path.read_bytes() == data
    assert client.post("/chat", json={"message": "x" * (1 << 20)}).status_code == 413
    both = {"message": "x" * (1 << 20), "attachments": [{"name": "x", "data": "QQ=="}]}
    assert client.post("/chat", json=both).status_code == 413
    two = [{"name": "x", "data": encoded(data[: (41 << 20) // 4])}] * 2
    too_much = client.post("/chat", json={"message": "x", "attachments": two})
    assert (too_much.status_code, too_much.json()["code"]) == (413, "file_too_large")
    larger = client.post(
        "/chat", json={"message": "x", "attachments": [{"name": "x", "data": "Q" * (28 << 20)}]}
    )
    assert (larger.status_code, larger.json()["code"]) == (413, "body_too_large")
    assert client.post("/task", json={"x": "y" * (1 << 20)}).status_code == 413


def test_who_is_refused_leaves_no_file(client: httpx2.Client, workspace: Path) -> None:
    files = {"attachments": [{"name": "x.png", "data": encoded(png(4, 4))}]}
    begun = client.post("/chat", json={"message": directive(delay_ms=60_000), "background": True}).json()
    busy = client.post("/chat", json={"message": "x", "conversation_id": begun["conversation_id"], **files})
    assert busy.status_code == 409
    assert (
        client.post("/chat", json={"message": "x", "conversation_id": "nobody", **files}).status_code == 404
    )
    client.post(f"/runs/{begun['run_id']}/cancel")
    assert not (workspace / "inbox" / begun["conversation_id"]).exists()
    assert not (workspace / "inbox" / "nobody").exists()


def test_the_same_request_with_a_key_is_one_message_with_one_file(
    client: httpx2.Client, workspace: Path
) -> None:
    body = {"message": directive(text="once"), "attachments": [{"name": "k.png", "data": encoded(png(3, 3))}]}
    answers = [client.post("/chat", json=body, headers={"Idempotency-Key": "k1"}).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert len(list((workspace / "inbox" / answers[0]["conversation_id"]).iterdir())) == 1


def test_the_same_request_with_a_key_is_answered_although_its_file_is_gone(client: httpx2.Client) -> None:
    client.put("/chat/main/files/in/short.txt", content=b"x")
    body = {"message": directive("once", text="seen"), "attachments": [{"path": "in/short.txt"}]}
    first = client.post("/chat", json=body, headers={"Idempotency-Key": "gone"})
    assert client.delete("/chat/main/files/in/short.txt").status_code == 204
    again = client.post("/chat", json=body, headers={"Idempotency-Key": "gone"})
    assert (again.status_code, again.json()) == (200, first.json())
    assert client.post("/chat", json=body, headers={"Idempotency-Key": "new"}).status_code == 404


def test_a_deleted_conversation_takes_its_inbox_and_copies_along(
    client: httpx2.Client, workspace: Path, host: HostProcess
) -> None:
    answer = say(client, {"name": "x.png", "data": encoded(png(6, 7))})
    principals = workspace.parent / "principals"
    kept = {path.parent for path in principals.rglob("*") if path.is_file()}
    assert client.delete(f"/chat/{answer['conversation_id']}").status_code == 204
    assert not (workspace / "inbox" / answer["conversation_id"]).exists()
    assert len({path for path in kept if path.exists()}) == len(kept) - 1


ODD = {
    "a file": "rm -r {0}; echo x > {0}",
    "a link": "rm -r {0}; ln -s / {0}",
    "closed": "chmod 0 {0}",
    "full of folders": "mkdir -p {0}/a/b; echo x > {0}/a/b/c; chmod 0 {0}/a",
}


@pytest.mark.parametrize("command", ODD.values(), ids=ODD)
def test_what_an_agent_made_of_an_inbox_keeps_nothing_of_its_conversation(
    client: httpx2.Client, workspace: Path, command: str
) -> None:
    answer = say(client, {"name": "x.png", "data": encoded(png(7, 7))})
    kept = {path.parent for path in (workspace.parent / "principals").rglob("*") if path.is_file()}
    inbox = workspace / "inbox" / answer["conversation_id"]
    call = {"name": "exec", "input": {"command": command.format(f"inbox/{inbox.name}")}}
    steps = directive(steps=[{"tools": [call]}, {"text": "$results"}])
    made = client.post("/chat", json={"message": steps, "conversation_id": inbox.name}).json()
    assert "[exit code 0" in made["result"]
    assert client.delete(f"/chat/{inbox.name}").status_code == 204
    assert not os.path.lexists(inbox)
    assert len({path for path in kept if path.exists()}) == len(kept) - 1


def test_more_pictures_than_a_request_holds_are_lines_the_oldest_first(
    client: httpx2.Client, model: ModelProcess
) -> None:
    pictures = [{"name": f"{number}.png", "data": encoded(png(number + 1, 1))} for number in range(60)]
    first = say(client, *pictures)
    assert len(of_kind(shown(model), "image")) == 60
    conversation = {"conversation_id": first["conversation_id"]}
    say(client, *pictures, **conversation)
    blocks = shown(model)
    assert len(of_kind(blocks, "image")) == 60
    say(client, *pictures[:10], **conversation)
    assert len(of_kind(shown(model), "image")) == 70
    told = [block["text"] for block in of_kind(shown(model), "text")]
    assert sum("was here; it was left out to save room" in text for text in told) == 60


@pytest.mark.parametrize("refusal", [(400, "image: could not process"), (413, "Request exceeds the size")])
def test_what_the_api_refuses_is_replaced_by_a_line_once(
    client: httpx2.Client, model: ModelProcess, refusal: tuple[int, str]
) -> None:
    status, message = refusal
    said = directive("look", status=status, message=message, times=1, text="without it")
    body = {"message": said, "attachments": [{"name": "x.png", "data": encoded(png(2, 2))}]}
    answer = client.post("/chat", json=body).json()
    assert answer["status"] == "success", answer
    again = client.post(
        "/chat", json={"message": "and?", "conversation_id": answer["conversation_id"]}
    ).json()
    assert again["status"] == "success"
    assert of_kind(shown(model), "image") == []


def test_a_principal_over_its_quota_is_refused_and_has_no_file(make_host: MakeHost) -> None:
    host = make_host(settings=SETTINGS).start()
    with somebody(host, "Ann", workspace_mb=1) as ann:
        files = [{"name": "b.bin", "data": encoded(b"x" * (2 << 20))}]
        refused = ann.client.post("/chat", json={"message": "x", "attachments": files})
        assert (refused.status_code, refused.json()["code"]) == (507, "workspace_full"), refused.text
        assert [each["conversation_id"] for each in ann.client.get("/chat").json()["conversations"]] == [
            "main"
        ]
        answer = say(ann.client, {"name": "s.png", "data": encoded(png(3, 3))})
        listed = ann.client.get(f"/chat/{answer['conversation_id']}/files?prefix=inbox/").json()["files"]
        assert [each["path"].rpartition("-")[2] for each in listed if each["type"] == "file"] == ["s.png"]
