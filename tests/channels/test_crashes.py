"""The host is killed at any moment: what came in is answered once, what was to go out goes out."""

from __future__ import annotations

import json
import random
import time
from functools import partial

from tests.channels.conftest import MakeHost
from tests.channels.test_telegram import history
from tests.fakes.bot_api import BotApi
from tests.http.conftest import configure
from tests.running import directive, until

KILLS = 6
CHATS = (7, 8, 9)


def test_a_message_in_the_works_is_answered_after_a_kill(make_host: MakeHost, own_api: BotApi) -> None:
    host = make_host().start()
    own_api.say(directive("slow", text="there", delay_ms=2500))
    own_api.say("and this")
    until(lambda: own_api.called("sendChatAction", 7) and own_api.pending() == 0)
    host.kill()
    assert own_api.texts() == []
    host.start()
    until(lambda: own_api.texts() == ["there", "echo: and this"])
    assert [message["role"] for message in history(host, "telegram:7")] == ["user", "assistant"] * 2


def test_an_answer_that_is_being_written_goes_on_in_the_same_message(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host().start()
    deltas = [f"word{number} " for number in range(150)]
    own_api.say(directive(deltas=deltas, delta_delay_ms=60))
    # Only by then is it sure that the host knows its message's id: sent, noted, edited.
    until(lambda: any(shown.edits and shown.text.endswith("…") for shown in own_api.shown()))
    host.kill()
    host.start()
    until(lambda: own_api.texts() == ["".join(deltas).strip()])
    assert len(own_api.shown()) == 1


def test_a_message_that_could_not_be_delivered_is_delivered_after_a_kill(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host().start()
    own_api.fail("sendMessage", 1000, status=500, description="Internal Server Error")
    own_api.say("hello")
    until(lambda: own_api.called("failed sendMessage"))
    host.kill()
    own_api.faults.clear()
    host.start()
    until(lambda: own_api.texts() == ["echo: hello"])


def test_a_run_that_may_have_had_an_effect_is_not_repeated(make_host: MakeHost, own_api: BotApi) -> None:
    host = make_host().start()
    call = {"name": "exec", "input": {"command": "echo once >> effects.txt; sleep 30"}}
    own_api.say(directive(steps=[{"tools": [call]}, {"text": "done"}]))
    effects = host.root / "memory" / "effects.txt"
    until(lambda: effects.exists() and effects.read_text())
    host.kill()
    host.start()
    until(own_api.texts)
    assert "⚠️" in own_api.texts()[0]
    assert (host.root / "memory" / "effects.txt").read_text() == "once\n"


def test_what_waits_is_not_done_for_who_lost_the_right_to_ask(make_host: MakeHost, own_api: BotApi) -> None:
    host = make_host(allow_from=[7, 8], owners=[8]).start()
    own_api.say("/main", user=8)
    until(lambda: own_api.texts(8))
    for user in (7, 8):
        own_api.say(directive("slow", text=f"secret {user}", delay_ms=4000), user=user)
        own_api.say("/tasks", user=user)
    own_api.say("and this")
    until(lambda: own_api.called("sendChatAction", 7) and own_api.called("sendChatAction", 8))
    until(lambda: own_api.pending() == 0)
    host.kill()
    said = own_api.texts(8)
    config = json.loads((host.root / "home" / "config.json").read_text())
    configure(
        host, channels={"telegram": {**config["channels"]["telegram"], "allow_from": [8, 9], "owners": []}}
    )
    host.start()
    own_api.say("hello", user=9)
    own_api.say("hello", user=8)
    until(lambda: own_api.texts(9) == ["echo: hello"])
    until(lambda: own_api.texts(8)[len(said) :] == ["echo: hello"])
    for conversation_id in ("telegram:7", "main"):
        # An answer that could not be delivered any more may be noted there, but nothing was done.
        told = [message for message in history(host, conversation_id) if message["sender"] != "system"]
        assert [message["role"] for message in told] == ["user"]


def test_an_update_that_is_brought_again_is_not_answered_again(make_host: MakeHost, own_api: BotApi) -> None:
    host = make_host().start()
    own_api.say("hello")
    until(lambda: own_api.texts() == ["echo: hello"])
    host.stop()
    own_api.bring_again(own_api.brought[0])
    own_api.say("next")
    host.start()
    until(lambda: own_api.texts() == ["echo: hello", "echo: next"])
    assert len(history(host, "telegram:7")) == 4


def test_nothing_is_lost_or_taken_twice_however_often_it_is_killed(
    make_host: MakeHost, own_api: BotApi
) -> None:
    chance = random.Random(11)
    host = make_host(messages_per_minute=0)
    said = 0
    for _ in range(KILLS):
        host.start(wait=False)
        until(lambda: own_api.called("getUpdates"))
        own_api.calls.clear()
        for _ in range(chance.randrange(3, 9)):
            said += 1
            own_api.say(
                directive(f"m{said}", text=f"a{said}", delay_ms=chance.randrange(60)), user=7 + said % 3
            )
        # Not to wait for anything: the moment of the kill is to be any.
        time.sleep(chance.uniform(0, 1.5))
        host.kill()
    host.start()
    until(lambda: own_api.pending() == 0)
    wanted = {chat: [f"a{n}" for n in range(1, said + 1) if 7 + n % 3 == chat] for chat in CHATS}
    until(lambda: all(own_api.texts(chat)[-1:] == wanted[chat][-1:] for chat in CHATS))
    for chat in CHATS:
        answers = [message["content"] for message in history(host, f"telegram:{chat}")[1::2]]
        assert answers == wanted[chat]
        # A crash between sending and noting it may repeat a message, but never loses or reorders one.
        assert list(dict.fromkeys(own_api.texts(chat))) == wanted[chat]
    extra = sum(len(own_api.texts(chat)) for chat in CHATS) - said
    assert extra <= KILLS


def answered(api: BotApi, number: int) -> bool:
    return len(api.texts()) >= number


def test_an_orderly_restart_repeats_and_loses_nothing(make_host: MakeHost, own_api: BotApi) -> None:
    chance = random.Random(5)
    host = make_host(messages_per_minute=0)
    said = 0
    for _ in range(3):
        host.start()
        for _ in range(10):
            said += 1
            own_api.say(directive(f"m{said}", text=f"a{said}", delay_ms=chance.randrange(40)))
        until(partial(answered, own_api, said - 7))
        assert host.stop() == 0
    host.start()
    until(partial(answered, own_api, said))
    until(lambda: own_api.pending() == 0)
    assert own_api.texts() == [f"a{number}" for number in range(1, said + 1)]
