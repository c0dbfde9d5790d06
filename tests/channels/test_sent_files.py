"""``send_file``: people get the file as it was when it was sent, in their chat or by the files route."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.channels.conftest import MakeHost
from tests.channels.test_telegram import history
from tests.fakes.bot_api import BotApi
from tests.running import HostProcess, directive, frames, until


def send_file(**given: Any) -> dict[str, Any]:
    return {"tools": [{"name": "send_file", "input": given}]}


def command(line: str) -> dict[str, Any]:
    return {"tools": [{"name": "exec", "input": {"command": line}}]}


def copies(host: HostProcess) -> list[str]:
    """Return the copies that a host keeps for chats."""
    kept = Path(host.environment.get("PRINCIPALS_DIR", host.root / "home" / "principals"))
    return [path.name for path in host.root.rglob("*.kept/*")] + [
        path.name for path in kept.rglob("*.kept/*")
    ]


def test_a_chat_gets_the_file_as_it_was_when_it_was_sent(make_host: MakeHost, own_api: BotApi) -> None:
    host = make_host().start()
    own_api.fail("sendDocument", 1, status=502, description="Bad Gateway")
    steps = [
        command("mkdir -p out; printf first > out/täst.txt"),
        send_file(path="out/täst.txt", caption="The result"),
        command("printf second > out/täst.txt"),
        {"text": "There it is."},
    ]
    own_api.say(directive(steps=steps), user=7)
    until(lambda: own_api.documents.get("7"))
    assert own_api.documents["7"] == [("täst.txt", b"first", "The result")]
    until(lambda: own_api.texts(7) == ["There it is."])
    until(lambda: copies(host) == [])


def test_what_no_chat_takes_is_an_error_result_and_what_is_gone_is_told(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host().start()
    steps = [
        command("truncate -s 50000001 big; printf x > x"),
        send_file(path="big"),
        {"text": "$results"},
    ]
    own_api.say(directive(steps=steps), user=7)
    until(lambda: own_api.texts(7))
    assert "big has more than 50 MB" in own_api.texts(7)[0]
    assert copies(host) == []
    own_api.blocked.add("7")
    own_api.say(directive(steps=[send_file(path="x"), {"text": ""}]), user=7)
    until(lambda: any(each["sender"] == "system" for each in history(host, "telegram:7")))
    until(lambda: copies(host) == [])
    assert own_api.documents == {}


def test_without_a_chat_the_message_names_the_file(host: HostProcess) -> None:
    steps = [command("printf abc > kept.txt"), send_file(path="kept.txt"), {"text": "done"}]
    with host.client() as client:
        answer = client.post("/chat", json={"message": directive(steps=steps), "stream": True})
        told = [(name, data) for _, name, data in frames(iter(answer.text.splitlines()))]
        (said,) = told[-1][1]["outbound_messages"]
        digest = hashlib.sha256(b"abc").hexdigest()
        assert said["file"] == {"path": "kept.txt", "size": 3, "sha256": digest}
        assert said["text"] == "kept.txt"
        assert [data["file"] for name, data in told if name == "message"] == [said["file"]]
        conversation = told[-1][1]["conversation_id"]
        assert client.get(f"/chat/{conversation}/files/{said['file']['path']}").content == b"abc"


def test_a_sent_file_can_be_fetched_by_its_path_however_the_agent_wrote_it(host: HostProcess) -> None:
    whole = f"{host.environment['MEMORY_DIR']}/odd/~kept.txt"
    for path in ("./odd/~kept.txt", "odd/../odd//~kept.txt", whole):
        steps = [command("mkdir -p odd; printf abc > odd/~kept.txt"), send_file(path=path, caption=" ")]
        with host.client() as client:
            answer = client.post(
                "/chat", json={"message": directive(steps=[*steps, {"text": "done"}])}
            ).json()
            (said,) = answer["outbound_messages"]
            assert (said["text"], said["file"]["path"]) == ("~kept.txt", "odd/~kept.txt")
            url = f"/chat/{answer['conversation_id']}/files/{said['file']['path']}"
            assert client.get(url).content == b"abc"


def test_only_a_file_of_the_workspace_is_sent(host: HostProcess) -> None:
    bad: list[dict[str, Any]] = [
        {"path": "../x"},
        {"path": "/etc/passwd"},
        {"path": "~/x"},
        {"path": "none"},
        {"path": "."},
        {},
        {"path": 7},
    ]
    bad.append({"path": "x", "caption": "c" * 501})
    for given in bad:
        with host.client() as client:
            message = directive(json.dumps(given)[:40], steps=[send_file(**given), {"text": "$results"}])
            told = client.post("/chat", json={"message": message}).json()
        assert told["outbound_messages"] == [], given
        assert "Sent" not in told["result"]


def test_rules_see_it(host: HostProcess) -> None:
    with host.client() as client:
        asked = {
            "message": directive(steps=[send_file(path="x")]),
            "permissions": [{"tool": "send_file", "do": "ask"}],
        }
        told = client.post("/chat", json=asked).json()
        assert (told["status"], told["requests"][0]["tool"]) == ("paused", "send_file")
