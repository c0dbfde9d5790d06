"""People talk to the agent through Telegram, or rather a Bot API server of the test's own."""

from __future__ import annotations

from base64 import b64encode
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.channels.conftest import OWNER
from tests.fakes.bot_api import TOKEN, BotApi
from tests.fakes.documents import png
from tests.running import HostProcess, ModelProcess, directive, until

Messages = list[dict[str, Any]]


def history(host: HostProcess, conversation_id: str) -> Messages:
    """Return its messages; none, when the channel hasn't begun it yet."""
    with host.client() as client:
        found: Messages = client.get(f"/chat/{conversation_id}/messages").json().get("messages", [])
    return found


def send_message(text: str) -> dict[str, Any]:
    return {"name": "mcp__picoclaw__send_message", "input": {"text": text}}


def test_a_message_is_answered_in_its_own_conversation(host: HostProcess, api: BotApi, user: int) -> None:
    api.say("hello", user=user)
    until(lambda: api.texts(user) == ["echo: hello"])
    question, answer = history(host, f"telegram:{user}")
    assert (question["content"], answer["content"]) == ("hello", "echo: hello")
    assert (question["sender"], question["sender_name"]) == (f"telegram:{user}", "Ann")


def test_messages_that_come_while_it_works_are_answered_in_order(
    host: HostProcess, api: BotApi, user: int
) -> None:
    api.say(directive("first", text="one", delay_ms=300), user=user)
    for number in range(5):
        api.say(f"number {number}", user=user)
    until(lambda: len(api.texts(user)) == 6)
    assert api.texts(user) == ["one", *(f"echo: number {number}" for number in range(5))]


def test_a_chat_that_is_busy_elsewhere_waits_for_its_turn(host: HostProcess, api: BotApi, user: int) -> None:
    api.say("hello", user=user)
    until(lambda: api.texts(user))
    slow = {"message": directive(text="slow", delay_ms=800), "conversation_id": f"telegram:{user}"}
    with host.client() as client, client.stream("POST", "/chat", json={**slow, "stream": True}) as stream:
        next(stream.iter_lines())
        api.say("and me", user=user)
        until(lambda: len(api.texts(user)) == 2)
    last = [message["content"] for message in history(host, f"telegram:{user}")][-2:]
    assert last == ["and me", "echo: and me"]


def test_a_long_answer_comes_in_several_whole_messages(host: HostProcess, api: BotApi, user: int) -> None:
    code = "\n".join(f"print({number})  # <b>&amp;</b>" for number in range(400))
    api.say(directive(text=f"Look:\n\n```python\n{code}\n```\n\nDone, **really**."), user=user)
    until(lambda: any("Done, really." in text for text in api.texts(user)))
    shown = api.shown(user)
    assert len(shown) > 2
    lines = [line for message in shown for line in message.text.split("\n") if line.startswith("print(")]
    assert lines == code.split("\n")
    assert all('<pre><code class="language-python">' in message.html for message in shown[1:-1])


def test_markdown_is_shown_as_telegram_can(host: HostProcess, api: BotApi, user: int) -> None:
    api.say(directive(text="# Title\n- **bold** `a<b` [page](https://example.org/?a=1&b=2)"), user=user)
    until(lambda: api.texts(user) == ["Title\n• bold a<b page"])
    (message,) = api.shown(user)
    assert message.html.startswith("<b>Title</b>\n• <b>bold</b> <code>a&lt;b</code> <a href=")


def test_an_answer_grows_in_one_message(host: HostProcess, api: BotApi, user: int) -> None:
    deltas = [f"word{number} " for number in range(60)]
    api.say(directive(deltas=deltas, delta_delay_ms=80), user=user)
    until(lambda: any(text.endswith("…") for text in api.texts(user)))
    until(lambda: api.texts(user) == ["".join(deltas).strip()])
    (message,) = api.shown(user)
    assert message.edits >= 2
    edits = [call.at for call in api.called("editMessageText", user)]
    assert all(later - earlier > 1 for earlier, later in pairwise(edits[:-1]))


def test_a_growing_answer_that_becomes_too_long_goes_on_in_further_messages(
    host: HostProcess, api: BotApi, user: int
) -> None:
    deltas = [f"line {number} {'x' * 90}\n" for number in range(90)]
    api.say(directive(deltas=deltas, delta_delay_ms=30), user=user)
    until(lambda: any("line 89" in text for text in api.texts(user)))
    found = [line for text in api.texts(user) for line in text.split("\n")]
    assert found == "".join(deltas).strip().split("\n")


def test_people_see_that_it_is_at_work(host: HostProcess, api: BotApi, user: int) -> None:
    api.say(directive(text="there", delay_ms=300), user=user)
    until(lambda: api.texts(user) == ["there"])
    (typing, *_) = api.called("sendChatAction", user)
    assert typing.parameters["action"] == "typing"


def test_new_begins_a_new_conversation(host: HostProcess, api: BotApi, user: int) -> None:
    api.say("hello", user=user)
    api.say("/new", user=user)
    api.say("again", user=user)
    until(lambda: len(api.texts(user)) == 3)
    assert "new conversation" in api.texts(user)[1]
    assert [message["content"] for message in history(host, f"telegram:{user}.2")] == ["again", "echo: again"]


def test_what_stands_behind_a_command_is_not_lost_in_silence(
    host: HostProcess, api: BotApi, user: int
) -> None:
    for said in ("/new what is due today?", "/stop and wait", "/start code"):
        api.say(said, user=user)
    until(lambda: len(api.texts(user)) == 3)
    told = sorted(text.rpartition("\n\n")[2] for text in api.texts(user) if "of its own" in text)
    rest = "I read nothing but {} of that message. Send the rest as one of its own."
    assert told == [rest.format("/new"), rest.format("/stop")]


def test_stop_ends_what_runs_without_waiting_for_it(host: HostProcess, api: BotApi, user: int) -> None:
    api.say(directive(hang=True), user=user)
    with host.client() as client:
        until(lambda: client.get(f"/chat/telegram:{user}").json().get("status") == "running")
    api.say("next", user=user)
    api.say("/stop", user=user)
    until(lambda: "echo: next" in api.texts(user))
    assert "Stopping." in api.texts(user)
    assert any("cancelled" in text for text in api.texts(user))


def test_stop_says_so_when_nothing_runs(host: HostProcess, api: BotApi, user: int) -> None:
    api.say("/stop", user=user)
    until(lambda: api.texts(user) == ["Nothing is running."])


def test_tasks_lists_what_the_conversation_has_scheduled(host: HostProcess, api: BotApi, user: int) -> None:
    api.say("/tasks", user=user)
    until(lambda: api.texts(user) == ["Nothing is scheduled in this conversation."])
    task = {"prompt": "water the plants", "schedule_type": "cron", "schedule_value": "0 9 * * *"}
    with host.client() as client:
        made = client.post("/task", json={**task, "conversation_id": f"telegram:{user}"})
    assert made.status_code == 201, made.text
    api.say("/tasks", user=user)
    until(lambda: len(api.texts(user)) == 2)
    assert api.texts(user)[1].startswith("• water the plants (cron 0 9")


def test_start_greets_and_names_the_commands(host: HostProcess, api: BotApi, user: int) -> None:
    api.say("/start", user=user)
    until(lambda: api.texts(user))
    assert "I am Pico." in api.texts(user)[0]
    assert "/new" in api.texts(user)[0]
    assert "/main" not in api.texts(user)[0]


def test_what_is_said_with_send_message_arrives_before_the_answer(
    host: HostProcess, api: BotApi, user: int
) -> None:
    steps = [
        {"tools": [send_message("half way <internal>psst</internal>")]},
        {"text": "done", "delay_ms": 1500},
    ]
    api.say(directive(steps=steps), user=user)
    until(lambda: [text.strip() for text in api.texts(user)] == ["half way"])
    until(lambda: len(api.texts(user)) == 2)
    assert api.texts(user)[1] == "done"


def test_an_answer_that_began_before_a_message_ends_below_it(
    host: HostProcess, api: BotApi, user: int
) -> None:
    deltas = [f"word{number} " for number in range(25)]
    first = {"deltas": deltas, "delta_delay_ms": 80, "tools": [send_message("in between")]}
    api.say(directive(steps=[first, {"text": "The end.", "delay_ms": 500}]), user=user)
    until(lambda: any("The end." in text for text in api.texts(user)))
    until(lambda: [text.split(" ")[0] for text in api.texts(user)] == ["in", "word0"])


def test_a_scheduled_task_reaches_the_chat(host: HostProcess, api: BotApi, user: int) -> None:
    api.say("hello", user=user)
    until(lambda: api.texts(user))
    prompt = directive(steps=[{"tools": [send_message("time for tea")]}, {"text": "said it"}])
    task = {"prompt": prompt, "schedule_type": "cron", "schedule_value": "0 9 * * *"}
    with host.client() as client:
        made = client.post("/task", json={**task, "conversation_id": f"telegram:{user}"}).json()
        client.post("/task/trigger", json={"task_id": made["id"]})
    until(lambda: api.texts(user) == ["echo: hello", "time for tea", "said it"])


def test_a_tasks_answer_reaches_the_chat_once_whatever_its_mode(
    host: HostProcess, api: BotApi, user: int
) -> None:
    api.say("hello", user=user)
    until(lambda: api.texts(user))
    task = {"schedule_type": "cron", "schedule_value": "0 9 * * *", "conversation_id": f"telegram:{user}"}
    doubled = directive(steps=[{"tools": [send_message("said once")]}, {"text": "said once"}])
    with host.client() as client:
        for fields in (
            {"prompt": directive(text="by the group"), "context_mode": "group"},
            {"prompt": directive(text="isolated [[PICOCLAW_SESSION_END]]")},
            {"prompt": directive(text="unheard"), "deliver": "none"},
            {"prompt": directive(text="<internal>unheard</internal>")},
            {"prompt": doubled},
            {"prompt": directive(status=400)},
        ):
            made = client.post("/task", json={**task, **fields}).json()
            client.post("/task/trigger", json={"task_id": made["id"]})
            client.post("/task/trigger", json={"task_id": made["id"]})
    until(lambda: any("⚠️ The scheduled task" in text for text in api.texts(user)))
    *said, failure = api.texts(user)[1:]
    assert said == ["by the group", "by the group", "isolated", "isolated", "said once", "said once"]
    assert "failed:" in failure


def test_an_owner_enters_the_main_conversation_and_hears_it(host: HostProcess, api: BotApi) -> None:
    api.say("/main", user=OWNER)
    until(lambda: any("main conversation now" in text for text in api.texts(OWNER)))
    api.say("hello", user=OWNER)
    until(lambda: "echo: hello" in api.texts(OWNER))
    assert "hello" in [message["content"] for message in history(host, "main")]
    with host.client() as client:
        body = {"message": directive(steps=[{"tools": [send_message("news")]}]), "conversation_id": "main"}
        assert client.post("/chat", json=body).json()["status"] == "success"
    until(lambda: "news" in api.texts(OWNER))
    api.say("/main", user=OWNER)
    until(lambda: any("have left" in text for text in api.texts(OWNER)))
    api.say("home", user=OWNER)
    until(lambda: "echo: home" in api.texts(OWNER))
    assert "home" in [message["content"] for message in history(host, f"telegram:{OWNER}")]


def test_nobody_else_and_no_group_enters_the_main_conversation(
    host: HostProcess, api: BotApi, user: int
) -> None:
    def refused(chat: int) -> bool:
        return any("Only its owners" in text for text in api.texts(chat))

    api.say("/main", user=user)
    api.say("/main", user=OWNER, chat=-user)
    until(partial(refused, user))
    until(partial(refused, -user))


def test_in_a_group_answers_are_replies_and_other_bots_commands_are_left_to_them(
    host: HostProcess, api: BotApi, user: int
) -> None:
    api.say("/stop@other_bot", user=user, chat=-user)
    asked = api.say("hello all", user=user, chat=-user)
    until(lambda: api.texts(-user) == ["echo: hello all"])
    assert api.shown(-user)[0].reply_to == asked
    api.say("/stop@PICO_bot", user=user, chat=-user)
    until(lambda: api.texts(-user)[1:] == ["Nothing is running."])


def test_what_a_message_answers_to_comes_along(host: HostProcess, api: BotApi, user: int) -> None:
    earlier = {"message_id": 1, "date": 1, "chat": {"id": user, "type": "private"}, "text": "the old words"}
    api.say("what about it?", user=user, reply_to_message=earlier)
    until(lambda: api.texts(user))
    question = history(host, f"telegram:{user}")[0]["content"]
    assert question == "[reply]\n> the old words\n\nwhat about it?"


def test_a_model_that_says_nothing_or_declines_is_no_silence(
    host: HostProcess, api: BotApi, user: int
) -> None:
    api.say(directive(text=""), user=user)
    until(lambda: api.texts(user))
    api.say(directive(text="", stop_reason="refusal"), user=user)
    until(lambda: len(api.texts(user)) == 2)
    api.say("and now?", user=user)
    until(lambda: len(api.texts(user)) == 3)
    silent, declined, after = api.texts(user)
    assert silent.startswith("The model ended without an answer.")
    assert "declined to answer" in declined
    assert after == "echo: and now?"


def test_a_document_lies_in_the_inbox_for_the_agent(host: HostProcess, api: BotApi, user: int) -> None:
    api.files[f"doc{user}"] = b"The answer is 42.\x00\xff"
    document = {"file_id": f"doc{user}", "file_unique_id": "u", "file_name": "../../etc/pass wd.txt"}
    message = api.say(None, user=user, caption="read this", document={**document, "file_size": 19})
    until(lambda: api.texts(user))
    path = f"inbox/telegram-{user}/{message}-pass_wd.txt"
    (question, _) = history(host, f"telegram:{user}")
    assert question["content"] == f"read this\n\n[Attached: {path} (19 bytes)]"
    assert (Path(host.environment["MEMORY_DIR"]) / path).read_bytes() == api.files[f"doc{user}"]


def test_the_largest_size_of_a_photo_is_taken_and_shown_to_the_model(
    host: HostProcess, api: BotApi, user: int, model: ModelProcess
) -> None:
    api.files[f"big{user}"] = png(user % 1000 + 1, 7, padding=2_000_000)
    sizes = [
        {"file_id": f"{name}{user}", "file_unique_id": name, "width": width, "height": width}
        for name, width in (("small", 90), ("big", 1280), ("middle", 320))
    ]
    message = api.say(None, user=user, photo=sizes)
    until(lambda: api.texts(user))
    path = Path(host.environment["MEMORY_DIR"]) / f"inbox/telegram-{user}/{message}-photo.jpg"
    assert path.read_bytes() == api.files[f"big{user}"]
    shown = [
        block["source"]["data"]
        for request in model.requests()
        for message in request["body"]["messages"]
        if isinstance(message["content"], list)  # a summary's is a text
        for block in message["content"]
        if block["type"] == "image"
    ]
    assert b64encode(api.files[f"big{user}"]).decode() in shown


def test_a_file_that_is_too_large_or_gone_is_only_named(host: HostProcess, api: BotApi, user: int) -> None:
    large = {"file_id": "x", "file_unique_id": "u", "file_name": "film.mkv", "file_size": 50_000_000}
    api.say("watch", user=user, document=large)
    api.say(None, user=user, document={**large, "file_size": 5})
    until(lambda: len(api.texts(user)) == 2)
    questions = [message["content"] for message in history(host, f"telegram:{user}")[::2]]
    assert questions[0] == "watch\n\n[Attached: film.mkv, not fetched: larger than 20000000 bytes]"
    assert questions[1] == "[Attached: film.mkv, which could not be fetched]"


def test_an_error_is_told_and_secrets_and_markers_are_not(host: HostProcess, api: BotApi, user: int) -> None:
    api.say(directive(status=400), user=user)
    api.say(directive(text=f"the token is {TOKEN} [[PICOCLAW_SESSION_END]]"), user=user)
    until(lambda: len(api.texts(user)) == 2)
    assert api.texts(user)[0].startswith("⚠️")
    assert api.texts(user)[1] == "the token is [redacted]"


def test_other_updates_and_rubbish_are_passed_over(host: HostProcess, api: BotApi, user: int) -> None:
    api.bring({"message": {"nonsense": True}})
    api.bring({"message": "text"})
    api.bring({"edited_message": {}})
    api.bring({"poll": 5})
    api.say(None, user=user, new_chat_members=[])
    api.say("half a \ud83d character and a NUL \0 too", user=user)
    until(lambda: api.texts(user))
    assert api.texts(user) == ["echo: half a ? character and a NUL  too"]
    until(lambda: api.pending() == 0)


def test_nothing_of_all_this_put_the_token_into_the_log(host: HostProcess) -> None:
    assert "A channel is connected" in host.log_text
    assert TOKEN not in host.log_text
    assert TOKEN.partition(":")[2] not in host.log_text
