"""Files in the console: chosen, pasted and dropped into a message, shown, saved, and browsed."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from playwright.sync_api import FilePayload, Page, Route, expect

from tests.console.conftest import MakePage
from tests.console.test_console import answer, ended, id_of, say
from tests.running import HostProcess, directive, until

PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAIAAAACUFjqAAAAEklEQVR4nGM4oaCABzGMSmNDALbYZyHgy5xhAAAAAElFTkSuQmCC"
)
DROP = """([name, type, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name, { type }));
  const node = document.querySelector(".conversation");
  node.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""
PASTE = """([name, type, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name, { type }));
  const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
  document.querySelector("#message").dispatchEvent(event);
}"""


def chosen(page: Page, *files: Any) -> None:
    page.locator(".composer input[type=file]").set_input_files(list(files))


def test_files_go_with_the_first_message_and_stand_beside_it_after_a_reload(
    make_page: MakePage, host: HostProcess
) -> None:
    page = make_page()
    chosen(
        page,
        {"name": "dot.png", "mimeType": "image/png", "buffer": PICTURE},
        {"name": "prices (new).csv", "mimeType": "text/csv", "buffer": b"a,b\n1,2\n"},
    )
    expect(page.locator(".tray li")).to_have_count(2)
    expect(page.locator(".tray img")).to_have_count(1)
    say(page, directive("what is on it?", text="a dot"))
    ended(page)
    expect(page.locator(".tray")).to_be_hidden()
    expect(answer(page)).to_contain_text("a dot")
    conversation = id_of(page)
    page.reload()
    files = page.get_by_role("list", name="Files of this message")
    expect(files.locator("li")).to_have_count(2)
    expect(files.get_by_role("img")).to_have_js_property("naturalWidth", 10)
    expect(page.locator(".turn.person .bubble")).not_to_contain_text("Attached")
    with page.expect_download() as saved:
        files.get_by_role("button").nth(1).click()
    assert saved.value.path().read_bytes() == b"a,b\n1,2\n"
    with host.client() as client:
        listed = client.get(f"/chat/{conversation}/messages").json()["messages"]
    assert listed[0]["content"].count("[Attached: ") == 2


def test_files_are_dropped_and_pasted_into_a_conversation_and_can_be_left_out(make_page: MakePage) -> None:
    page = make_page()
    say(page, directive("begin", text="fine"))
    ended(page)
    id_of(page)
    page.evaluate(DROP, ["dropped.txt", "text/plain", "dropped"])
    page.evaluate(PASTE, ["pasted.txt", "text/plain", "pasted"])
    page.evaluate(DROP, ["wrong.txt", "text/plain", "wrong"])
    page.get_by_role("button", name="Leave out wrong.txt").click()
    expect(page.locator(".tray li")).to_have_count(2)
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".turn.agent")).to_have_count(2)
    ended(page)
    page.reload()
    files = page.get_by_role("list", name="Files of this message")
    expect(files).to_contain_text(re.compile("dropped.txt.*pasted.txt"))
    expect(page.locator(".turn.person .bubble").last).to_have_text("dropped.txt, pasted.txt")


def test_a_message_is_sent_with_its_files_also_when_people_leave_meanwhile(
    make_page: MakePage, host: HostProcess
) -> None:
    page = make_page()
    say(page, "begin")
    ended(page)
    conversation = id_of(page)
    held: list[Route] = []
    page.route("**/files/**", lambda route: held.append(route), times=1)
    # 240 bytes of a name are kept, and no letter is cut.
    chosen(page, {"name": f"{'長' * 80}🦆.txt", "mimeType": "text/plain", "buffer": b"long"})
    say(page, "look at it")
    expect(page.get_by_text("Sending the files")).to_be_visible()
    page.get_by_role("link", name="New conversation").click()
    expect(page.locator(".welcome")).to_be_visible()
    held[0].continue_()
    with host.client() as client:
        until(lambda: client.get(f"/chat/{conversation}").json()["message_count"] == 4)
        said = client.get(f"/chat/{conversation}/messages").json()["messages"][2]["content"]
    assert "look at it" in said
    assert f"{'長' * 75}🦆.txt (text/plain, 4 bytes)]" in said
    expect(page.locator(".welcome")).to_be_visible()


def test_what_a_run_changed_is_listed_and_saved(make_page: MakePage) -> None:
    page = make_page()
    write = {"name": "write_file", "input": {"path": "made/report.txt", "content": "the report"}}
    say(page, directive("write it", steps=[{"tools": [write]}, {"text": "done"}]))
    ended(page)
    id_of(page)
    changed = page.get_by_role("list", name="Files this run changed")
    with page.expect_download() as saved:
        changed.get_by_role("button", name="report.txt").click()
    assert saved.value.path().read_text() == "the report"
    page.reload()
    expect(changed.get_by_role("button", name="report.txt")).to_be_visible()
    page.get_by_role("button", name="Steps").click()
    expect(page.locator(".step")).to_be_visible()
    expect(changed.get_by_role("button", name="report.txt")).to_be_visible()


def test_the_workspace_takes_files_shows_pictures_and_deletes(
    make_page: MakePage, tmp_path: Path, host: HostProcess
) -> None:
    with host.client() as client:
        client.put("/chat/main/files/album/first.txt", content=b"first")
    page = make_page("#/workspace/album%2F")
    (tmp_path / "dot.png").write_bytes(PICTURE)
    page.locator(".page input[type=file]").set_input_files([tmp_path / "dot.png"])
    page.get_by_role("link", name="dot.png").click()
    expect(page.get_by_role("img", name="dot.png")).to_have_js_property("naturalWidth", 10)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save").click()
    assert saved.value.path().read_bytes() == PICTURE
    page.go_back()
    page.get_by_role("button", name="Delete first.txt").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("link", name="first.txt")).to_have_count(0)
    with host.client() as client:
        assert client.get("/chat/main/files/album/first.txt").status_code == 404
        assert client.get("/chat/main/files/album/dot.png").content == PICTURE


def test_a_folder_with_what_can_not_be_listed_is_not_called_empty(
    make_page: MakePage, host: HostProcess
) -> None:
    folder = Path(host.environment["MEMORY_DIR"]) / "unlisted"
    folder.mkdir()
    (folder / "\udcff").write_bytes(b"")
    page = make_page("#/workspace/unlisted%2F")
    expect(page.locator(".page")).to_contain_text("Not everything in here can be listed.")
    expect(page.locator(".page")).not_to_contain_text("empty")


def test_a_file_of_a_name_that_is_there_is_replaced_after_a_question(
    make_page: MakePage, host: HostProcess
) -> None:
    with host.client() as client:
        client.put("/chat/main/files/shelf/mine.txt", content=b"mine")
        page = make_page("#/workspace/shelf%2F")
        files: list[FilePayload] = [
            {"name": name, "mimeType": "text/plain", "buffer": b"new"}
            for name in (f"{'x' * 300}.txt", "mine.txt", "other.txt")
        ]
        page.locator(".page input[type=file]").set_input_files(files)
        page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
        expect(page.get_by_role("link", name="other.txt")).to_be_visible()
        expect(page.locator(".notice")).to_contain_text("xxx.txt was not added.")
        assert client.get("/chat/main/files/shelf/mine.txt").content == b"mine"
        page.locator(".page input[type=file]").set_input_files([files[1]])
        page.get_by_role("dialog").get_by_role("button", name="Replace it").click()
        until(lambda: client.get("/chat/main/files/shelf/mine.txt").content == b"new")


def test_a_file_s_name_can_t_look_like_another(make_page: MakePage, host: HostProcess) -> None:
    with host.client() as client:
        client.put("/chat/main/files/posing/%E2%80%AEgnp.exe", content=b"MZ")
    page = make_page("#/workspace/posing%2F")
    link = page.locator(".entries a")
    expect(link).to_have_text("\\u202egnp.exe")
    link.click()
    expect(page.locator(".trail")).to_contain_text("\\u202egnp.exe")
    expect(page.get_by_role("heading", level=2)).to_have_text("\\u202egnp.exe")
