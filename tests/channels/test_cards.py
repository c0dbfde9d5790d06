"""Calls and questions that wait, in Telegram: buttons for those who may answer, gone once it is decided."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.channels.conftest import MakeHost
from tests.fakes.bot_api import BotApi, Shown
from tests.http.test_approvals import append, asking, written
from tests.running import HostProcess, directive, until

ANN, BOB, GROUP = 7, 8, -55
RULES = [{"tool": "append_file", "match": "gated*", "do": "ask"}]
ALLOW, DENY, KEEP = "Allow", "Deny", "Allow this call in this conversation"
QUESTION: dict[str, Any] = {
    "name": "ask_person",
    "input": {"question": "Which\ncity?", "options": ["Rome", "Oslo"]},
}


@pytest.fixture
def gated(make_host: MakeHost) -> HostProcess:
    """A host on which Ann may allow calls, and everybody may write."""
    return make_host(config={"permissions": RULES}, owners=[ANN]).start()


def card(api: BotApi, chat: int = ANN) -> Shown:
    """Return the chat's newest message that has buttons, once there is one."""
    until(lambda: any(each.buttons for each in api.shown(chat)))
    return [each for each in api.shown(chat) if each.buttons][-1]


def requests(host: HostProcess) -> list[dict[str, Any]]:
    with host.client() as client:
        found: list[dict[str, Any]] = client.get("/approvals").json()["approvals"]
    return found


def closed(api: BotApi, chat: int = ANN) -> None:
    until(lambda: not any(each.buttons for each in api.shown(chat)))


def test_a_press_allows_the_call_and_the_chat_hears_how_it_went_on(
    gated: HostProcess, own_api: BotApi
) -> None:
    own_api.say(asking(), user=ANN)
    shown = card(own_api)
    assert list(shown.buttons) == [ALLOW, DENY, KEEP]
    assert 'append_file\n{\n  "path": "gated.txt",\n  "content": "x"\n}' in shown.text
    own_api.press(ALLOW, user=ANN)
    until(lambda: any(text.startswith("done:") for text in own_api.texts(ANN)))
    closed(own_api)
    assert written(gated) == "x"
    assert own_api.notices() == ["Done."]
    assert next(text for text in own_api.texts(ANN) if "✅ Allowed by Ann" in text)
    (request,) = requests(gated)
    assert request["status"] == "done"
    by = request["decided_by"]
    assert (by["door"], by["name"], by["address"]) == ("telegram", "Ann", "telegram:7")
    assert len([text for text in own_api.texts(ANN) if text.startswith("done:")]) == 1


def test_a_press_counts_that_is_faster_than_the_answer_to_who_sent_the_button(
    gated: HostProcess, own_api: BotApi
) -> None:
    own_api.noticed = threading.Event()
    own_api.say(asking(), user=ANN)
    card(own_api)
    own_api.press(ALLOW, user=ANN)
    until(own_api.notices)
    assert own_api.notices() == ["Done."]


def test_a_denied_call_is_not_made_and_a_second_press_changes_nothing(
    gated: HostProcess, own_api: BotApi
) -> None:
    own_api.say(asking(), user=ANN)
    allow = card(own_api).buttons[ALLOW]
    own_api.press(DENY, user=ANN)
    own_api.press(ALLOW, user=ANN, data=allow)
    until(lambda: any(text.startswith("done:") for text in own_api.texts(ANN)))
    closed(own_api)
    assert written(gated) == ""
    assert own_api.notices()[0] == "Done."
    assert own_api.notices()[1] != "Done."


def test_a_call_is_remembered_for_the_conversation(gated: HostProcess, own_api: BotApi) -> None:
    own_api.say(asking(), user=ANN)
    card(own_api)
    own_api.press(KEEP, user=ANN)
    until(lambda: any(text.startswith("done:") for text in own_api.texts(ANN)))
    own_api.say(asking(text="again: $results"), user=ANN)
    until(lambda: any(text.startswith("again:") for text in own_api.texts(ANN)))
    assert written(gated) == "xx"


def test_only_approvers_have_buttons_and_others_see_the_call(gated: HostProcess, own_api: BotApi) -> None:
    own_api.say(asking(), user=BOB, name="bob")
    until(lambda: any("May I do this?" in text for text in own_api.texts(BOB)))
    assert not any(each.buttons for each in own_api.shown(BOB))
    (request,) = requests(gated)
    own_api.press("", user=BOB, name="bob", data=f"allow.{request['id']}")
    until(lambda: len(own_api.notices()) == 1)
    assert own_api.notices() == ["You may not answer this."]
    assert requests(gated)[0]["status"] == "pending"


def test_in_a_group_the_press_is_checked_against_who_pressed(gated: HostProcess, own_api: BotApi) -> None:
    own_api.say(asking(), user=BOB, name="bob", chat=GROUP)
    card(own_api, GROUP)
    own_api.press(ALLOW, user=BOB, name="bob", chat=GROUP)
    until(lambda: own_api.notices() == ["You may not answer this."])
    assert requests(gated)[0]["status"] == "pending"
    own_api.press(ALLOW, user=ANN, chat=GROUP)
    until(lambda: any(text.startswith("done:") for text in own_api.texts(GROUP)))
    assert written(gated) == "x"


@pytest.mark.parametrize(("approvers", "label"), [([BOB], ALLOW), ([], None)])
def test_approvers_stand_in_for_the_owners(
    make_host: MakeHost, own_api: BotApi, approvers: list[int], label: str | None
) -> None:
    host = make_host(config={"permissions": RULES}, owners=[ANN], approvers=approvers).start()
    own_api.say(asking(), user=ANN)
    own_api.say(asking(), user=BOB, name="bob")
    for user in (ANN, BOB):
        until(lambda: any("May I do this?" in text for text in own_api.texts(user)))  # noqa: B023
    assert not any(each.buttons for each in own_api.shown(ANN))
    assert any(each.buttons for each in own_api.shown(BOB)) is (label is not None)
    assert len(requests(host)) == 2


def test_another_chat_can_press_nothing_of_this_one(gated: HostProcess, own_api: BotApi) -> None:
    own_api.say("hello", user=BOB, name="bob")
    own_api.say(asking(), user=ANN)
    allow = card(own_api).buttons[ALLOW]
    until(lambda: own_api.texts(BOB) == ["echo: hello"])
    own_api.press("", user=BOB, name="bob", data=allow)
    own_api.press("", user=ANN, data="allow.appr-nobody")
    own_api.press("", user=ANN, data="junk")
    until(lambda: len(own_api.notices()) == 3)
    assert set(own_api.notices()) == {"Nothing waits here any more."}
    assert requests(gated)[0]["status"] == "pending"


def test_buttons_vanish_where_it_is_decided_elsewhere(gated: HostProcess, own_api: BotApi) -> None:
    own_api.say(asking(), user=ANN)
    card(own_api)
    (request,) = requests(gated)
    with gated.client() as client:
        client.post(f"/approvals/{request['id']}", json={"decision": "deny", "message": "not now"})
    closed(own_api)
    assert any("🚫 Denied by operator: not now" in text for text in own_api.texts(ANN))
    until(lambda: any(text.startswith("done:") for text in own_api.texts(ANN)))


def test_buttons_vanish_when_nobody_answered_in_time(gated: HostProcess, own_api: BotApi) -> None:
    call = {"name": "ask_person", "input": {**QUESTION["input"], "timeout_ms": 1500, "options": ["", "Rome"]}}
    own_api.say(asking(call), user=ANN)
    until(lambda: any("⌛ Nobody answered in time" in text for text in own_api.texts(ANN)))
    closed(own_api)


def test_a_question_is_answered_by_an_option_or_by_the_next_message(
    gated: HostProcess, own_api: BotApi
) -> None:
    own_api.say(asking(QUESTION), user=BOB, name="bob")
    shown = card(own_api, BOB)
    assert (shown.text.startswith("Which\ncity?"), list(shown.buttons)) == (True, ["Rome", "Oslo"])
    own_api.press("Oslo", user=BOB, name="bob")
    until(lambda: any(text == "done: <answer>Oslo</answer>" for text in own_api.texts(BOB)))
    own_api.say(asking(QUESTION, text="second"), user=BOB, name="bob")
    card(own_api, BOB)
    own_api.say("neither", user=BOB, name="bob")
    until(lambda: own_api.texts(BOB)[-1] == "echo: neither")
    closed(own_api, BOB)
    second, first = requests(gated)
    assert [(each["status"], each["message"]) for each in (first, second)] == [
        ("answered", "Oslo"),
        ("answered", "neither"),
    ]
    assert second["decided_by"]["door"] == "telegram"


def test_options_that_a_button_cannot_hold_stand_whole_in_the_question(
    gated: HostProcess, own_api: BotApi
) -> None:
    options = [f"{'Delete the old copies, ' * 3}then {what}" for what in ("stop", "the new ones too")]
    own_api.say(asking({"name": "ask_person", "input": {"question": "How?", "options": options}}), user=BOB)
    shown = card(own_api, BOB)
    assert f"How?\n\n1. {options[0]}\n\n2. {options[1]}" in shown.text
    first, second = shown.buttons
    assert (first[:10], second[:10]) == ("1. Delete ", "2. Delete ")
    own_api.press(second, user=BOB)
    until(lambda: any(text == f"done: <answer>{options[1]}</answer>" for text in own_api.texts(BOB)))


def test_a_message_denies_a_call_that_waits(gated: HostProcess, own_api: BotApi) -> None:
    own_api.say(asking(), user=ANN)
    assert "A message here denies it" in card(own_api).text
    own_api.say("never mind", user=ANN)
    until(lambda: own_api.texts(ANN)[-1] == "echo: never mind")
    closed(own_api)
    assert requests(gated)[0]["status"] == "denied"


@pytest.mark.parametrize("content", ["y" * 4000, "😀" * 2500])
def test_a_call_that_is_too_long_to_be_shown_can_only_be_denied(
    gated: HostProcess, own_api: BotApi, content: str
) -> None:
    call = {"name": "append_file", "input": {"path": "gated.txt", "content": content}}
    own_api.say(asking(call), user=ANN)
    shown = card(own_api)
    assert list(shown.buttons) == [DENY]
    (request,) = requests(gated)
    assert f"GET /approvals/{request['id']}" in shown.text
    own_api.press("", user=ANN, data=f"allow.{request['id']}")
    until(lambda: own_api.notices() == ["Nothing waits here any more."])
    assert requests(gated)[0]["status"] == "pending"


def test_what_is_shown_steers_nothing(gated: HostProcess, own_api: BotApi) -> None:
    call = {"name": "append_file", "input": {"path": "gated\u202etxt", "content": "*x* `y`\n<b>"}}
    own_api.say(asking(call), user=ANN)
    text = card(own_api).text
    assert '"path": "gated\\u202etxt"' in text
    assert '"content": "*x* `y`\\n<b>"' in text


def test_a_question_that_a_host_did_not_live_to_deliver_comes_with_its_buttons_later(
    gated: HostProcess, own_api: BotApi
) -> None:
    own_api.fail("sendMessage", times=1, status=500, description="Internal Server Error")
    own_api.say(asking(append()), user=ANN)
    until(lambda: requests(gated))
    gated.kill()
    gated.start()
    card(own_api)
    own_api.press(ALLOW, user=ANN)
    until(lambda: any(text.startswith("done:") for text in own_api.texts(ANN)))
    assert written(gated) == "x"


def test_a_chat_hears_the_end_of_a_run_whose_budget_is_lifted_elsewhere(
    make_host: MakeHost, own_api: BotApi
) -> None:
    host = make_host(config={"budgets": {"run": {"tokens": 10}}}, owners=[ANN]).start()
    own_api.say(directive(text="Here I am"), user=ANN)
    until(lambda: own_api.texts(ANN))
    (request,) = requests(host)
    assert not any(each.buttons for each in own_api.shown(ANN))
    with host.client() as client:
        body = {"decision": "allow", "allow_tokens": 1_000_000}
        assert client.post(f"/approvals/{request['id']}", json=body).status_code == 200
    until(lambda: own_api.texts(ANN)[-1] == "Here I am")
