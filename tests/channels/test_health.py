"""A channel that doesn't work says so and is tried again; nothing else suffers, and no secret comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

from tests.channels.conftest import MakeHost
from tests.channels.test_plugins import logged
from tests.fakes.bot_api import TOKEN, BotApi, running_bot_api
from tests.running import HostProcess, until


def state(host: HostProcess) -> str:
    with host.client(token=None) as client:
        found: str = client.get("/health").json()["channels"]["telegram"]
    return found


def test_a_wrong_token_warns_and_the_host_goes_on(make_host: MakeHost, own_api: BotApi) -> None:
    wrong = "1:AAAA-WRONG-CANARY-0123456789"
    host = make_host({"PICOCLAW_CHANNELS_TELEGRAM_TOKEN": wrong, "LOG_LEVEL": "debug"}).start()
    until(lambda: "does not accept the bot's token" in host.log_text)
    assert state(host) == "retrying"
    with host.client() as client:
        assert client.post("/chat", json={"message": "hi"}).json()["status"] == "success"
    assert wrong not in host.log_text
    assert "WRONG-CANARY" not in host.log_text


def test_no_token_and_one_of_no_form_are_said(make_host: MakeHost) -> None:
    for token, said in (("", "token is not set"), ("tokentokentoken", "does not look like")):
        host = make_host({"PICOCLAW_CHANNELS_TELEGRAM_TOKEN": token}).start()
        until(partial(logged, host, said))
        assert state(host) == "retrying"
        assert "tokentokentoken" not in host.log_text


def test_a_network_that_comes_back_brings_the_channel_back(make_host: MakeHost, own_api: BotApi) -> None:
    own_api.fail("getMe", 1, drop="before")
    own_api.fail("getMe", 1, status=500, description="Internal Server Error")
    own_api.say("hello")
    host = make_host({"LOG_LEVEL": "debug"}).start()
    until(lambda: "Telegram cannot be reached" in host.log_text)
    until(lambda: own_api.texts() == ["echo: hello"])
    assert state(host) == "ok"
    own_api.fail("getUpdates", 1, status=409, description="Conflict: terminated by other getUpdates request")
    own_api.say("again")
    until(lambda: "another program asks for this bot's messages" in host.log_text)
    until(lambda: own_api.texts()[1:] == ["echo: again"])
    assert TOKEN not in host.log_text


def doctor(host: HostProcess) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "host.cli", "doctor", "--json"]
    done = subprocess.run(command, env={**host.environment, "PATH": os.environ["PATH"]}, capture_output=True)
    assert TOKEN.encode() not in done.stdout + done.stderr
    return [finding for finding in json.loads(done.stdout) if finding["check"].startswith("channel")]


def test_doctor_asks_telegram_whether_it_knows_the_bot(make_host: MakeHost, own_api: BotApi) -> None:
    host = make_host()
    assert doctor(host) == [{"check": "channel telegram", "verdict": "ok", "said": "it can be used"}]
    own_api.token = "5:another"
    (finding,) = doctor(host)
    assert finding["verdict"] == "fault"
    assert "does not accept the bot's token" in finding["said"]
    with running_bot_api() as gone:
        address = gone.url
    (finding,) = doctor(make_host(api_base=address))
    assert "cannot be reached" in finding["said"]
