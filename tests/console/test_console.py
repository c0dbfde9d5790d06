"""The console as people use it: talking, stopping, coming back, tasks, usage, keys, a phone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from playwright.sync_api import Page, Request, Route, expect

from tests.console.conftest import MakeHost, MakePage, in_both, knock, sign_in
from tests.console.wire import Wire
from tests.http.conftest import configure
from tests.mcp.authorization import Grants, guarded_server
from tests.running import TOKEN, HostProcess, ModelProcess, directive, until

SLOW: dict[str, Any] = {"text": "", "deltas": [f"word{n} " for n in range(40)], "delta_delay_ms": 60}
SLOW["text"] = "".join(SLOW["deltas"])


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answer(page: Page) -> Any:
    """The last answer on the page."""
    return page.locator(".turn.agent").last


def ended(page: Page) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(answer(page).locator(".waiting")).to_have_count(0)


def id_of(page: Page) -> str:
    page.wait_for_url(re.compile("#/c/conv-"))
    return page.url.rpartition("/")[2]


# The door


def test_the_token_opens_the_console_and_stands_nowhere_but_in_the_header(make_page: MakePage) -> None:
    page = make_page(signed_in=False)
    seen: list[Request] = []
    page.on("request", lambda request: seen.append(request))
    page.reload()
    knock(page, "wrong")
    expect(page.get_by_role("alert")).to_have_text("The host does not know this token.")
    sign_in(page)
    say(page, "hello")
    ended(page)
    assert TOKEN not in page.content()
    assert TOKEN not in page.url
    assert not any(TOKEN in request.url for request in seen)
    assert TOKEN not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    asked = [request for request in seen if "/chat" in request.url and "/console" not in request.url]
    assert asked
    assert all(request.headers["authorization"].startswith("Bearer ") for request in asked[1:])
    files = [request for request in seen if "/console" in request.url]
    assert files
    assert all("authorization" not in request.headers for request in files)


def test_only_the_host_is_asked_for_anything(make_page: MakePage, host: HostProcess) -> None:
    page = make_page(signed_in=False)
    others: list[str] = []
    page.on(
        "request", lambda request: None if request.url.startswith(host.url) else others.append(request.url)
    )
    sign_in(page)
    say(page, directive(text="![x](https://evil.example/x.png) https://evil.example/y"))
    ended(page)
    assert others == []


@in_both
def test_a_second_tab_needs_no_second_login_and_signing_out_ends_both(make_page: MakePage) -> None:
    page = make_page()
    page.reload()
    expect(page.get_by_role("heading", name="What shall we do?")).to_be_visible()
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_role("heading", name="What shall we do?")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API token")).to_be_visible()
    expect(other.get_by_label("API token")).to_be_visible()
    expect(other.get_by_role("alert")).to_have_text("You signed out in another tab.")
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0
    assert other.evaluate("sessionStorage.length") == 0


def test_the_login_ends_with_the_last_tab_unless_people_stay_signed_in(make_page: MakePage) -> None:
    page = make_page()
    context, url = page.context, page.url

    def again() -> Page:
        for one in context.pages:
            one.close()
        fresh = context.new_page()
        fresh.goto(url)
        return fresh

    page = again()
    expect(page.get_by_label("API token")).to_be_visible()
    page.get_by_label("Stay signed in on this device").check()
    sign_in(page)
    page = again()
    expect(page.get_by_role("heading", name="What shall we do?")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page = again()
    expect(page.get_by_label("API token")).to_be_visible()
    assert page.evaluate("localStorage.getItem('picoclaw.token')") is None


def test_a_token_that_is_no_longer_good_leads_back_to_the_door(make_page: MakePage) -> None:
    page = make_page()
    page.evaluate("sessionStorage.setItem('picoclaw.token', 'old')")
    page.goto(f"{page.url}#/tasks")
    expect(page.get_by_role("alert")).to_have_text("The host no longer knows this token.")


# Talking


@in_both
def test_an_answer_comes_live_with_its_steps_folded(make_page: MakePage) -> None:
    page = make_page()
    tools = [
        {"name": "exec", "input": {"command": "echo from the sandbox"}},
        {"name": "read_file", "input": {"path": "nowhere.txt"}},
    ]
    say(page, directive("steps please", steps=[{"text": "First I look.", "tools": tools}, SLOW]))
    expect(answer(page).get_by_text("First I look.")).to_be_visible()
    expect(answer(page)).to_contain_text("word3")
    assert "word39" not in answer(page).inner_text()
    expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
    ended(page)
    expect(answer(page)).to_contain_text("word39")
    steps = answer(page).locator(".step")
    expect(steps).to_have_count(2)
    assert page.evaluate("[...document.querySelectorAll('.step')].some((step) => step.open)") is False
    steps.first.locator("summary").click()
    expect(steps.first.locator(".result")).to_contain_text("from the sandbox")
    expect(steps.last.locator(".icon.failed")).to_have_count(1)
    expect(answer(page).locator(".foot")).to_contain_text("tokens")


def test_a_conversation_is_in_the_list_and_there_again_after_a_reload(make_page: MakePage) -> None:
    page = make_page()
    say(page, "this is the title of it")
    ended(page)
    entry = page.get_by_role("link", name="this is the title of it")
    expect(entry).to_have_attribute("aria-current", "page")
    expect(page.get_by_role("heading", level=1)).to_have_text("this is the title of it")
    page.reload()
    expect(answer(page)).to_contain_text("echo: this is the title of it")
    say(page, "and this is more")
    ended(page)
    expect(page.locator(".turn")).to_have_count(4)
    page.get_by_role("link", name="New conversation").click()
    expect(page.get_by_role("heading", name="What shall we do?")).to_be_visible()
    page.go_back()
    expect(page.locator(".turn")).to_have_count(4)


def test_thoughts_are_shown_folded_when_they_are_asked_for(make_page: MakePage) -> None:
    page = make_page()
    page.get_by_text("Think", exact=True).click()
    say(page, directive(text="so", thinking="let me think about it"))
    ended(page)
    thought = answer(page).locator(".thought")
    expect(thought.locator(".inside")).not_to_be_visible()
    thought.locator("summary").click()
    expect(thought.locator(".inside")).to_have_text("let me think about it")


def test_stopping_keeps_what_was_said(make_page: MakePage, host: HostProcess) -> None:
    page = make_page()
    words = "so far so good " * 20
    say(page, directive(text=words, deltas=[words, "never"], hang_after_deltas=1))
    expect(answer(page)).to_contain_text("so far")
    page.keyboard.press("Escape")
    expect(answer(page).locator(".note.quiet")).to_contain_text("cancelled")
    ended(page)
    with host.client() as client:
        assert client.get(f"/chat/{id_of(page)}").json()["status"] == "idle"


def test_a_failed_run_says_why(make_page: MakePage) -> None:
    page = make_page()
    say(page, directive(status=400, message="no"))
    expect(answer(page).get_by_role("alert")).to_be_visible()
    ended(page)


def test_an_error_stays_in_sight_after_a_reload_and_is_tried_again(
    make_page: MakePage, model: ModelProcess, host: HostProcess
) -> None:
    page = make_page()
    model.script({"status": 400, "message": "no such luck"})
    say(page, "please work")
    expect(answer(page).get_by_role("alert")).to_contain_text("no such luck")
    page.reload()
    expect(answer(page).get_by_role("alert")).to_contain_text("no such luck")
    expect(page.locator(".turn")).to_have_count(2)
    answer(page).get_by_role("button", name="Retry").click()
    expect(answer(page)).to_contain_text("echo: please work")
    ended(page)
    expect(page.locator(".turn.person")).to_have_count(1)
    with host.client() as client:
        assert client.get(f"/chat/{id_of(page)}").json()["message_count"] == 2
    page.reload()
    expect(answer(page)).to_contain_text("echo: please work")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_run_that_failed_goes_on_without_a_new_message(
    make_page: MakePage, model: ModelProcess, host: HostProcess
) -> None:
    page = make_page()
    model.script({"status": 403, "message": "no such luck"})
    say(page, "please go on")
    answer(page).get_by_role("button", name="Go on").click()
    expect(answer(page)).to_contain_text("echo: please go on")
    ended(page)
    expect(page.locator(".turn.person")).to_have_count(1)
    expect(page.get_by_role("button", name="Go on")).to_have_count(0)
    model.script({"text": "I can't.", "stop_reason": "refusal"})
    say(page, "refuse this")
    expect(answer(page).get_by_role("button", name="Retry")).to_be_visible()
    expect(page.get_by_role("button", name="Go on")).to_have_count(0)


def test_a_call_that_waits_has_a_card_and_goes_on_when_it_is_allowed(
    make_page: MakePage, make_host: MakeHost
) -> None:
    host = make_host(PICOCLAW_PERMISSIONS='[{"tool": "append_file", "do": "ask"}]').start()
    page = make_page(url=host.url)
    call = {"name": "append_file", "input": {"path": "a.txt", "content": "<b>x</b>"}}
    say(page, directive(steps=[{"tools": [call]}, {"text": "all done"}]))
    card = page.get_by_role("form", name="Waits for you")
    expect(card).to_contain_text("append_file")
    expect(card).to_contain_text("<b>x</b>")
    page.reload()
    card.get_by_role("button", name="Allow", exact=True).click()
    expect(answer(page)).to_contain_text("all done")
    expect(card).to_have_count(0)


def test_an_edit_that_waits_is_shown_as_what_goes_and_what_comes_and_a_key_allows_it(
    make_page: MakePage, make_host: MakeHost
) -> None:
    host = make_host(PICOCLAW_PERMISSIONS='[{"tool": "edit_file", "do": "ask"}]').start()
    (Path(host.environment["MEMORY_DIR"]) / "a.txt").write_text("old\nlines\n")
    page = make_page(url=host.url)
    call = {"name": "edit_file", "input": {"path": "a.txt", "old_text": "old", "new_text": "<b>new</b>"}}
    steps = [{"tools": [{"name": "read_file", "input": {"path": "a.txt"}}]}, {"tools": [call]}]
    say(page, directive(steps=[*steps, {"text": "all done"}]))
    card = page.get_by_role("form", name="Waits for you")
    expect(card.locator(".diff .gone")).to_have_text("- old")
    expect(card.locator(".diff .new")).to_have_text("+ <b>new</b>")
    badge = page.get_by_role("navigation", name="Conversations").get_by_text("waits for you")
    expect(badge).to_be_visible(timeout=15_000)
    page.locator("main").focus()
    page.keyboard.press("a")
    expect(answer(page)).to_contain_text("all done")
    expect(card).to_have_count(0)
    expect(badge).to_have_count(0, timeout=15_000)


def test_calls_are_shown_whole_and_one_that_is_answered_elsewhere_goes(
    make_page: MakePage, host: HostProcess
) -> None:
    function = {"name": "order", "description": "", "input_schema": {"type": "object"}}
    calls = [{"name": "client__order", "input": {"items": [{"what": what}]}} for what in ("tea", "milk")]
    page = make_page()
    say(page, "here")
    ended(page)
    with host.client() as client:
        asked = directive(steps=[{"tools": calls}, {"text": "done"}])
        said = {"message": asked, "conversation_id": id_of(page), "tools": [function]}
        tea, _ = client.post("/chat", json=said).json()["requests"]
        cards = page.get_by_role("form", name="Waits for you")
        expect(cards).to_have_count(2)
        expect(cards.first).to_contain_text('"what": "tea"')
        denied = {"decision": "deny", "input_sha256": tea["input_sha256"]}
        assert client.post(f"/approvals/{tea['id']}", json=denied).status_code == 200
        expect(cards).to_have_count(1)
        expect(cards).to_contain_text('"what": "milk"')


def test_what_is_typed_into_a_card_stays_while_another_is_answered(
    make_page: MakePage, host: HostProcess
) -> None:
    asks = [{"name": "ask_person", "input": {"question": which}} for which in ("Which tea?", "Which milk?")]
    with host.client() as client:
        paused = client.post(
            "/chat", json={"message": directive(steps=[{"tools": asks}, {"text": "done"}])}
        ).json()
        tea = paused["requests"][0]
        page = make_page(f"#/c/{paused['conversation_id']}")
        cards = page.get_by_role("form", name="Waits for you")
        cards.filter(has_text="Which milk?").get_by_label("Your answer").fill("oat")
        said = {"decision": "answer", "message": "green", "input_sha256": tea["input_sha256"]}
        assert client.post(f"/approvals/{tea['id']}", json=said).status_code == 200
        expect(cards).to_have_count(1)
        cards.get_by_role("button", name="Answer", exact=True).click()
        expect(answer(page)).to_contain_text("done")
        second = client.get(f"/approvals/{paused['requests'][1]['id']}").json()
    assert second["message"] == "oat"


def test_on_a_phone_all_of_what_waits_is_in_sight(make_page: MakePage, host: HostProcess) -> None:
    long = "A" * 300
    write = {"name": "write_file", "input": {"path": f"{long[:200]}.txt", "content": long}}
    ask = {"name": "ask_person", "input": {"question": long, "options": [long[:100], "no"]}}
    with host.client() as client:
        for tool in (write, ask):
            said = {"message": directive(steps=[{"tools": [tool]}, {"text": "done"}])}
            gate = [{"tool": "write_file", "do": "ask"}]
            paused = client.post("/chat", json={**said, "permissions": gate}).json()
            page = make_page(f"#/c/{paused['conversation_id']}", viewport={"width": 375, "height": 700})
            card = page.get_by_role("form", name="Waits for you")
            expect(card).to_contain_text(long)
            over = "card => [card, ...card.querySelectorAll('*')].filter(e => e.scrollWidth > 375 || "
            assert card.evaluate(f"{over}e.getBoundingClientRect().right > 375).length") == 0


def test_a_step_that_was_answered_and_does_not_go_on_is_said_on_every_page(make_page: MakePage) -> None:
    page = make_page()
    note = "What people answered 20 minutes ago has not gone on"

    def stuck(route: Route) -> None:
        told = route.fetch().json()
        route.fulfill(json={**told, "approvals": {"note": note}})

    page.route("**/health", stuck)
    page.reload()
    expect(page.get_by_text(note)).to_be_visible()


def test_an_older_error_stays_where_it_was_and_is_not_offered_again(
    make_page: MakePage, host: HostProcess
) -> None:
    with host.client() as client:
        made = client.post("/chat", json={"message": "first"}).json()["conversation_id"]
        client.post(
            "/chat", json={"message": directive(status=400, message="broken"), "conversation_id": made}
        )
        client.post("/chat", json={"message": "third", "conversation_id": made})
    page = make_page(f"#/c/{made}")
    turns = page.locator(".turn")
    expect(turns).to_have_count(6)
    expect(turns.nth(3).get_by_role("alert")).to_contain_text("broken")
    expect(turns.nth(5)).to_contain_text("echo: third")
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)


def test_a_stop_stays_in_sight_after_a_reload(make_page: MakePage) -> None:
    page = make_page()
    say(page, directive("stop me", **SLOW))
    expect(answer(page)).to_contain_text("word2")
    page.get_by_role("button", name="Stop the answer").click()
    expect(answer(page).locator(".note.quiet")).to_contain_text("cancelled")
    page.reload()
    expect(answer(page).locator(".note.quiet")).to_contain_text("cancelled")
    expect(answer(page).get_by_role("button", name="Retry")).to_be_visible()
    answer(page).get_by_role("button", name="Steps").click()
    expect(answer(page)).to_contain_text("word2")
    expect(answer(page).get_by_role("button", name="Retry")).to_be_visible()


def test_a_crash_stays_in_sight_and_is_told_in_words(make_page: MakePage, make_host: MakeHost) -> None:
    host = make_host(LEASE_MS="1000").start()
    page = make_page(url=host.url)
    say(page, directive("crash", text="so far", deltas=["so far", "never"], hang_after_deltas=1))
    expect(answer(page)).to_contain_text("so far")
    host.kill()
    host.start()
    page.reload()
    expect(answer(page).get_by_role("alert")).to_contain_text("Trying again is safe")
    expect(answer(page).get_by_role("button", name="Retry")).to_be_visible()


def test_the_last_message_is_edited_and_said_again(make_page: MakePage) -> None:
    page = make_page()
    say(page, "one")
    ended(page)
    say(page, "tow")
    ended(page)
    expect(page.get_by_role("button", name="Edit", exact=True)).to_have_count(1)
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_label("Message", exact=True)).to_have_value("tow")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    page.get_by_role("button", name="Edit", exact=True).click()
    say(page, "two")
    expect(answer(page)).to_contain_text("echo: two")
    ended(page)
    expect(page.locator(".bubble")).to_have_text(["one", "two"])
    page.reload()
    expect(page.locator(".turn.agent")).to_have_count(2)
    expect(page.locator(".bubble")).to_have_text(["one", "two"])


def test_what_is_written_during_a_run_is_sent_next(make_page: MakePage, host: HostProcess) -> None:
    page = make_page()
    held = {"name": "exec", "input": {"command": "until [ -e go ]; do sleep 0.1; done"}}
    say(page, directive("slow one", steps=[{"text": "I wait.", "tools": [held]}, {"text": "Done."}]))
    expect(answer(page)).to_contain_text("I wait.")
    for text in ("second", "never mind", "third"):
        say(page, text)
    waiting = page.locator(".waiting-line")
    expect(waiting).to_have_text(["Sent next: second", "Sent next: never mind", "Sent next: third"])
    page.get_by_role("button", name="Don’t send: never mind").click()
    page.reload()
    expect(waiting).to_have_text(["Sent next: second", "Sent next: third"])
    with host.client() as client:
        client.put(f"/chat/{id_of(page)}/files/go", content=b"").raise_for_status()
    expect(answer(page)).to_contain_text("echo: third")
    ended(page)
    expect(page.locator(".bubble")).to_have_count(3)
    expect(page.locator(".bubble").nth(1)).to_have_text("second")
    expect(waiting).to_have_count(0)


def test_a_model_is_picked_for_what_is_said_next(make_page: MakePage, model: ModelProcess) -> None:
    page = make_page()
    picker = page.get_by_label("Model")
    name = picker.locator("option").nth(1).inner_text()
    picker.select_option(name)
    say(page, "by another")
    ended(page)
    assert model.requests()[-1]["body"]["model"] == name
    expect(answer(page)).to_contain_text("echo: by another")


def test_a_refused_message_is_given_back_to_whoever_wrote_it(make_page: MakePage) -> None:
    page = make_page()
    text = "x" * (1024 * 1024 + 10)
    page.get_by_label("Message", exact=True).evaluate(
        "(field, text) => { field.value = text; field.dispatchEvent(new Event('input')); }", text
    )
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".notice")).to_contain_text("larger than")
    assert page.get_by_label("Message", exact=True).input_value() == text
    expect(page.locator(".turn")).to_have_count(0)


def test_a_refusal_costs_no_word_and_stays_until_it_is_closed(make_page: MakePage) -> None:
    page = make_page()
    page.clock.install()
    field = page.get_by_label("Message", exact=True)

    def refuse(route: Route) -> None:
        field.fill("typed meanwhile")
        route.fulfill(status=503, json={"error": "Too many wait.", "code": "busy"})

    page.route("**/chat", refuse, times=1)
    say(page, "the first wish")
    expect(field).to_have_value("the first wish\n\ntyped meanwhile")
    page.clock.run_for(60_000)
    expect(page.locator(".notice")).to_contain_text("Too many wait.")
    page.get_by_role("button", name="Close this notice").click()
    expect(page.locator(".notice")).to_have_count(0)


def test_what_was_being_written_is_there_again_after_an_edit(make_page: MakePage) -> None:
    page = make_page()
    say(page, "first")
    ended(page)
    field = page.get_by_label("Message", exact=True)
    field.fill("a draft")
    page.get_by_role("button", name="Edit").click()
    expect(field).to_have_value("first")
    page.keyboard.press("Escape")
    expect(field).to_have_value("a draft")
    page.get_by_role("button", name="Edit").click()
    say(page, "second")
    expect(answer(page)).to_contain_text("echo: second")
    expect(field).to_have_value("a draft")


def test_a_run_that_goes_on_is_joined_when_its_conversation_is_opened(
    make_page: MakePage, host: HostProcess
) -> None:
    page = make_page()
    # A busy machine takes seconds to load the page again.
    deltas = [f"word{n} " for n in range(120)]
    say(page, directive("slowly", **{**SLOW, "text": "".join(deltas), "deltas": deltas}))
    expect(answer(page)).to_contain_text("word2")
    page.reload()
    expect(answer(page)).to_contain_text("word2")
    expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
    ended(page)
    assert answer(page).locator(".prose").inner_text().split() == "".join(deltas).split()


def test_what_happens_elsewhere_appears_by_itself(make_page: MakePage, host: HostProcess) -> None:
    page = make_page()
    say(page, "here")
    ended(page)
    with host.client() as client:
        client.post("/chat", json={"message": "elsewhere", "conversation_id": id_of(page)})
    expect(answer(page)).to_contain_text("echo: elsewhere")


def test_a_paused_run_goes_on_with_what_people_allow(make_page: MakePage, make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"run": {"tokens": 1}}).start()
    page = make_page("#/tasks", url=host.url)
    expect(page.get_by_role("heading", name="No tasks yet")).to_be_visible()
    page.get_by_role("link", name="Usage").click()
    expect(page.get_by_role("heading", name="Nothing used yet")).to_be_visible()
    page.get_by_role("link", name="New conversation").click()
    say(page, "too dear")
    expect(page.get_by_label("It may use")).to_be_visible()
    page.reload()
    page.get_by_role("button", name="Go on").click()
    expect(answer(page)).to_contain_text("echo: too dear")


def test_a_pause_at_a_budget_is_told_in_words_for_people(make_page: MakePage, make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"run": {"tokens": 1}}).start()
    page = make_page(url=host.url)
    say(page, "too dear")
    form = page.get_by_role("form", name="Paused at a budget")
    for _ in range(2):
        expect(form).to_contain_text("Paused: a budget is used up. The limit for one run is 1 tokens")
        expect(page.locator(".transcript")).not_to_contain_text("POST /chat")
        page.reload()


def test_a_pause_that_is_over_stands_before_the_answer(make_page: MakePage, make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"run": {"tokens": 1}}).start()
    page = make_page(url=host.url)
    say(page, "too dear")
    page.get_by_role("button", name="Go on").click()
    expect(answer(page)).to_contain_text("echo: too dear")
    ended(page)
    page.reload()
    turns = page.locator(".turn")
    expect(turns).to_have_count(3)
    expect(turns.nth(1).locator(".note.warn")).to_have_text(re.compile("needs at least [\\d,]+\\.$"))
    expect(turns.nth(2)).to_contain_text("echo: too dear")
    expect(page.get_by_role("button", name="Go on")).to_have_count(0)


def test_a_conversation_is_renamed_and_found(make_page: MakePage, host: HostProcess) -> None:
    page = make_page()
    say(page, "where shall we go")
    ended(page)
    page.get_by_role("button", name="Rename this conversation").click()
    page.get_by_label("Title").fill("Voyage to Ångermanland")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Voyage to Ångermanland")
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Voyage to Ångermanland")
    say(page, "x")
    ended(page)
    search = page.get_by_label("Search conversations")
    entries = page.locator(".conversations .list a")
    search.fill("ångerman")
    expect(entries).to_have_count(1)
    search.fill("shall WE go")
    expect(entries).to_have_count(1)
    search.fill("no such thing at all")
    expect(page.locator(".conversations")).to_contain_text("Nothing found.")
    search.fill("")
    expect(page.get_by_role("link", name="Voyage to Ångermanland")).to_be_visible()
    page.get_by_role("button", name="Rename this conversation").click()
    page.get_by_label("Title").fill("")
    page.get_by_role("button", name="Rename it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("where shall we go")


def test_a_conversation_is_exported_whole(make_page: MakePage, host: HostProcess) -> None:
    with host.client() as client:
        made = client.post("/chat", json={"message": "# first\n<b>x</b>"}).json()["conversation_id"]
        client.post(
            "/chat", json={"message": directive(status=400, message="broken"), "conversation_id": made}
        )
    page = make_page(f"#/c/{made}")
    saved = {}
    for form in ("Markdown", "JSON"):
        page.get_by_role("button", name="Export this conversation").click()
        page.get_by_label(form).check()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save").click()
        saved[download.value.suggested_filename] = download.value.path().read_text()
    text, whole = saved[f"{made}.md"], json.loads(saved[f"{made}.json"])
    assert text.startswith("# # first")
    assert "echo: # first\n<b>x</b>" in text
    assert "> error: " in text
    assert [message["role"] for message in whole["messages"]] == ["user", "assistant", "user"]
    assert [run["status"] for run in whole["runs"]] == ["error", "success"]


def test_a_conversation_is_deleted_after_a_question(make_page: MakePage, host: HostProcess) -> None:
    page = make_page()
    say(page, "to be deleted")
    ended(page)
    made = id_of(page)
    page.get_by_role("button", name="Delete this conversation").click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Delete this conversation").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("heading", name="What shall we do?")).to_be_visible()
    with host.client() as client:
        assert client.get(f"/chat/{made}").status_code == 404
    expect(page.get_by_role("link", name="to be deleted")).to_have_count(0)


# The wire


@in_both
def test_a_lost_connection_costs_no_word_and_doubles_none(make_page: MakePage, host: HostProcess) -> None:
    with Wire(host.port) as wire:
        page = make_page(url=wire.url)
        say(page, directive("over a bad wire", **{**SLOW, "delta_delay_ms": 150}))
        for word in ("word5", "word15", "word25"):
            expect(answer(page)).to_contain_text(word)
            wire.cut()
        expect(answer(page)).to_contain_text("word39")
        ended(page)
        assert answer(page).locator(".prose").inner_text().split() == SLOW["text"].split()
        assert len(re.findall(rb"(?i)last-event-id: \d+", wire.sent)) >= 2
        assert wire.sent.count(b"POST /chat HTTP") == 1
        expect(page.locator(".turn.person")).to_have_count(1)


def test_a_message_whose_answer_never_began_is_said_once(make_page: MakePage, host: HostProcess) -> None:
    with Wire(host.port) as wire:
        page = make_page(url=wire.url)
        expect(page.get_by_role("heading", name="What shall we do?")).to_be_visible()
        wire.cut(stay=True)
        say(page, "said while the wire was cut")
        expect(page.locator(".offline")).to_be_visible()
        wire.open()
        ended(page)
        expect(answer(page)).to_contain_text("echo: said while the wire was cut")
        expect(page.locator(".offline")).not_to_be_visible()
        with host.client() as client:
            assert client.get(f"/chat/{id_of(page)}").json()["message_count"] == 2


# Tasks and usage


def test_a_task_is_made_run_paused_resumed_and_deleted(make_page: MakePage) -> None:
    page = make_page("#/tasks")
    page.get_by_role("button", name="New task").click()
    page.get_by_label("What to say to the agent").fill("water the plants")
    page.get_by_label("When").select_option("interval")
    page.get_by_label("Schedule").fill("never")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("alert")).to_contain_text("schedule_value")
    page.get_by_label("Schedule").fill("2h")
    page.get_by_role("button", name="Make it").click()
    card = page.locator(".card", has_text="water the plants")
    expect(card).to_contain_text("every 2 hours")
    expect(card.locator(".when")).to_contain_text("next in 1 hr.")
    card.get_by_role("button", name="Run now").click()
    expect(page.locator(".notice").last).to_contain_text("echo: water the plants")
    card.get_by_role("button", name="Log").click()
    card.locator(".entry summary").click()
    expect(card.locator(".entry")).to_contain_text("echo: water the plants")
    card.get_by_role("button", name="Pause").click()
    expect(card.locator(".badge")).to_have_text("paused")
    card.get_by_role("button", name="Resume").click()
    expect(card.locator(".badge")).to_have_text("active")
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    expect(card).to_have_count(0)


@in_both
def test_a_task_is_edited(make_page: MakePage, host: HostProcess) -> None:
    task = {
        "prompt": "edit me",
        "schedule_type": "interval",
        "schedule_value": "7200000",
        "timezone": "Asia/Tokyo",
        "ends_at": "2036-01-31T09:00",
        "max_runs": 5,
    }
    with host.client() as client:
        made = client.post("/task", json=task).json()
    page = make_page("#/tasks")
    card = page.locator(".card", has_text="edit me")
    card.get_by_role("button", name=re.compile("^Edit:")).click()
    expect(page.get_by_label("Schedule")).to_have_value("2h")
    expect(page.get_by_label("No run after")).to_have_value("2036-01-31T09:00")
    page.get_by_label("What to say to the agent").fill("edit me well")
    page.get_by_label("End after so many runs").fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".card", has_text="edit me well")).to_be_visible()
    with host.client() as client:
        now = client.get(f"/task/{made['id']}").json()
    kept = ("schedule_value", "timezone", "ends_at", "next_run", "context_mode")
    assert [now[name] for name in kept] == [made[name] for name in kept]
    assert now["max_runs"] is None
    page.locator(".card", has_text="edit me well").get_by_role("button", name=re.compile("^Edit:")).click()
    page.get_by_label("When").select_option("cron")
    page.get_by_label("Schedule").fill("nonsense")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("schedule_value")
    with host.client() as client:
        client.delete(f"/task/{made['id']}")


def test_the_conversation_of_an_isolated_run_is_reached_from_its_log(
    make_page: MakePage, host: HostProcess
) -> None:
    task = {"prompt": "all alone", "schedule_type": "interval", "schedule_value": "3600000"}
    with host.client() as client:
        made = client.post("/task", json=task).json()
        client.post("/task/trigger", json={"task_id": made["id"]})
    page = make_page("#/tasks")
    card = page.locator(".card", has_text="all alone")
    card.get_by_role("button", name="Log").click()
    card.locator(".entry summary").click()
    card.get_by_role("link", name="Open the conversation of this run").click()
    expect(answer(page)).to_contain_text("echo: all alone")
    expect(page.get_by_role("heading", level=1)).to_contain_text("all alone")


def test_what_is_overdue_is_red(make_page: MakePage, make_host: MakeHost) -> None:
    host = make_host(SCHEDULER="external").start()
    task = {"prompt": "late", "schedule_type": "once", "schedule_value": "2020-01-01", "run_if_past": True}
    with host.client() as client:
        client.post("/task", json=task)
    page = make_page("#/tasks", url=host.url)
    expect(page.locator(".card .when time")).to_contain_text("overdue")
    shown = page.locator(".card .when time").evaluate("(node) => getComputedStyle(node).color")
    red, green, blue = (int(part) for part in re.findall(r"\d+", shown))
    assert red > 2 * max(green, blue)


NOW = "2026-11-28T22:11:00"
TIMES = {
    "2026-11-30T09:11:00": "in 2 days",
    "2026-11-29T23:00:00": "tomorrow",
    "2026-11-29T09:00:00": "in 10 hr.",
    "2026-11-29T00:10:59": "in 1 hr. 59 min.",
    "2026-11-28T23:11:00": "in 1 hr.",
    "2026-11-28T22:12:30": "in 1 min.",
    "2026-11-28T22:11:30": "in seconds",
    "2026-11-28T22:10:30": "now",
    "2026-11-28T20:01:00": "2 hr. 10 min. ago",
    "2026-11-27T12:00:00": "yesterday",
    "2026-11-26T23:59:00": "2 days ago",
    "2026-12-11T22:11:00": "in 13 days",
    "2026-12-19T22:11:00": "in 3 wk.",
    "2027-03-01T00:00:00": "in 3 mo.",
    "2029-11-28T22:11:00": "in 3 yr.",
}


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
def test_relative_times_are_those_of_the_readers_calendar(make_page: MakePage, zone: str) -> None:
    page = make_page(signed_in=False, timezone_id=zone)
    said = page.evaluate(
        """async ([now, times]) => {
          const { ago } = await import(new URL("console/format.js", location));
          return times.map((time) => ago(new Date(time).toISOString(), Date.parse(now)));
        }""",
        [NOW, list(TIMES)],
    )
    assert dict(zip(TIMES, said, strict=True)) == TIMES


# Memory, skills, workspace


def workspace(host: HostProcess) -> Path:
    return Path(host.environment["MEMORY_DIR"])


def test_the_memory_is_read_and_rewritten(make_page: MakePage, make_host: MakeHost) -> None:
    host = make_host().start()
    page = make_page("#/memory", url=host.url)
    expect(page.get_by_role("heading", name="Nothing remembered yet")).to_be_visible()
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("What the agent remembers").fill("# Cats\n\nMiso.")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="Cats")).to_be_visible()
    assert (workspace(host) / "MEMORY.md").read_text() == "# Cats\n\nMiso."
    page.get_by_role("button", name="Edit").click()
    (workspace(host) / "MEMORY.md").write_text("The agent wrote this.")
    page.get_by_label("What the agent remembers").fill("Mine.")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("changed it meanwhile")
    assert (workspace(host) / "MEMORY.md").read_text() == "The agent wrote this."
    page.get_by_role("button", name="Cancel").click()


def test_skills_are_listed_and_what_is_wrong_with_them(make_page: MakePage, make_host: MakeHost) -> None:
    host = make_host().start()
    page = make_page("#/skills", url=host.url)
    head = "---\nname: tea\ndescription: makes tea\n---\nBoil.\n"
    for name, text in (("tea", head), ("odd", "no head")):
        (workspace(host) / "skills" / name).mkdir(parents=True)
        (workspace(host) / "skills" / name / "SKILL.md").write_text(text)
    page.get_by_role("button", name="Read again").click()
    expect(page.locator(".card", has_text="makes tea")).to_contain_text("skills/tea")
    expect(page.locator(".note.warn")).to_contain_text("odd")


@in_both
def test_a_person_signs_in_at_an_mcp_server_and_sees_what_its_tools_cost(
    make_page: MakePage, make_host: MakeHost, tmp_path: Path
) -> None:
    grants = Grants()
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(guarded_server(grants)) as url:
        down = "http://127.0.0.1:9/mcp"
        config = {"tools": {"mcp": {"servers": {"notes": {"url": url}, "down": {"url": down}}}}}
        (tmp_path / "host0" / "home").mkdir(parents=True)
        (tmp_path / "host0" / "home" / "config.json").write_text(json.dumps(config))
        page = make_page("#/servers", url=make_host(SEAL_KEY="k" * 43).start().url)
        notes, failing = page.locator(".card", has_text=url), page.locator(".card", has_text=down)
        expect(failing).to_contain_text("failing")
        expect(failing).to_contain_text("could not be reached")
        expect(notes).to_contain_text("needs sign-in")
        notes.get_by_role("button", name="Sign in at notes").click()
        expect(notes).to_contain_text("ready")
        expect(notes).to_contain_text(re.compile(r"1 tool, about [1-9]\d+ tokens"))
        assert "code=" not in page.url
        notes.get_by_text("Tools").click()
        expect(notes).to_contain_text("mcp__notes__note")
        page.set_viewport_size({"width": 320, "height": 568})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        notes.get_by_role("button", name="Sign out at notes").click()
        expect(notes).to_contain_text("needs sign-in")


@in_both
def test_the_workspace_is_walked_and_files_are_shown_as_text(
    make_page: MakePage, make_host: MakeHost
) -> None:
    host = make_host().start()
    deep = workspace(host) / "notes" / 'odd "name" <b>'
    deep.mkdir(parents=True)
    (deep / "a b.md").write_text("# Hello\n<script>pwn()</script>")
    (deep / "run.py").write_text("def f():\n    return 1\n")
    (deep / "picture").write_bytes(bytes(range(256)) * 4)
    (deep / "out").symlink_to("/etc")
    page = make_page("#/workspace", url=host.url)
    page.get_by_role("link", name="notes").click()
    page.get_by_role("link", name='odd "name" <b>').click()
    expect(page.locator(".entries")).to_contain_text("out")
    expect(page.get_by_role("link", name="out", exact=True)).to_have_count(0)
    page.get_by_role("link", name="a b.md").click()
    expect(page.get_by_role("heading", name="Hello")).to_be_visible()
    page.go_back()
    page.get_by_role("link", name="run.py").click()
    expect(page.locator(".code .hl-keyword").first).to_have_text("def")
    page.go_back()
    page.get_by_role("link", name="picture").click()
    expect(page.get_by_text("This file is not text.")).to_be_visible()
    page.get_by_role("link", name="Workspace").first.click()
    expect(page.get_by_role("link", name="notes")).to_be_visible()
    page.goto(f"{host.url}/console#/workspace/..%2F")
    expect(page.get_by_role("heading", name="This can’t be shown")).to_be_visible()


def test_usage_is_drawn_by_day_and_told_in_tables(make_page: MakePage, host: HostProcess) -> None:
    with host.client() as client:
        client.post("/chat", json={"message": "use something " * 2000})
        used = client.get("/usage").json()["usage"][0]
    page = make_page("#/usage")
    expect(page.get_by_role("img", name=re.compile("Tokens by day"))).to_be_visible()
    drawn = page.evaluate(
        "[...document.querySelectorAll('.chart g')].at(-1).querySelector('title').textContent"
    )
    assert drawn == f"{used['day']}: {used['tokens']:,} tokens, {used['runs']:,} runs"
    heights = page.evaluate(
        "[...document.querySelectorAll('.chart g rect:not(.reach)')].map((bar) => bar.height.baseVal.value)"
    )
    assert max(heights) > 0
    expect(page.get_by_role("region", name="Usage by conversation")).to_contain_text("use something")


def test_the_sandbox_level_is_always_in_sight(make_page: MakePage, host: HostProcess) -> None:
    with host.client() as client:
        level = client.get("/health").json()["sandbox"]["level"]
    page = make_page()
    expect(page.locator(".sandbox")).to_have_text(f"Sandbox {level}/3")


# Keys, themes, screens


def press(page: Page, key: str) -> None:
    """Press a key outside of every field, once the conversation has come, which then focuses the message."""
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.locator("#main").focus()
    page.keyboard.press(key)


@in_both
def test_everything_can_be_reached_by_keys(make_page: MakePage) -> None:
    page = make_page()
    for text in ("key one", "key two"):
        say(page, text)
        ended(page)
        press(page, "n")
        expect(page.get_by_role("heading", name="What shall we do?")).to_be_visible()
    for key, conversation in (("j", "key two"), ("j", "key one"), ("k", "key two")):
        press(page, key)
        expect(page.get_by_role("heading", level=1)).to_have_text(conversation)
    press(page, "/")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("tun?")
    assert page.get_by_label("Message", exact=True).input_value() == "tun?"
    page.locator("#main").focus()
    page.keyboard.press("t")
    expect(page.get_by_role("heading", level=1)).to_have_text("Tasks")
    page.keyboard.press("u")
    expect(page.get_by_role("heading", level=1)).to_have_text("Usage")
    page.keyboard.press("?")
    page.get_by_label("Single keys do something").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    expect(page.get_by_role("heading", level=1)).to_have_text("Usage")


def test_enter_sends_and_with_shift_it_makes_a_line(make_page: MakePage) -> None:
    page = make_page()
    page.get_by_label("Message", exact=True).click()
    page.keyboard.type("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second")
    page.keyboard.press("Enter")
    expect(page.locator(".bubble")).to_have_text("first\nsecond")
    ended(page)


def test_the_first_key_skips_to_the_content(make_page: MakePage) -> None:
    page = make_page("#/tasks")
    expect(page.get_by_role("heading", level=1)).to_have_text("Tasks")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    assert page.url.endswith("#/tasks")


def test_the_theme_is_the_system_s_until_another_is_chosen(make_page: MakePage) -> None:
    page = make_page(color_scheme="dark")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name=re.compile("^Theme")).click()
    light = page.evaluate(paper)
    assert light != dark
    page.reload()
    expect(page.locator(".side")).to_be_visible()
    assert page.evaluate(paper) == light


def test_on_a_phone_the_list_is_a_drawer(make_page: MakePage) -> None:
    page = make_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    expect(page.locator(".side")).not_to_be_visible()
    page.get_by_role("button", name="Conversations").click()
    expect(page.locator(".side")).to_be_visible()
    assert page.evaluate("document.querySelector('.stage').inert") is True
    page.keyboard.press("Escape")
    expect(page.locator(".side")).not_to_be_visible()
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("link", name="Tasks").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tasks")
    expect(page.locator(".side")).not_to_be_visible()
    page.goto(f"{page.url.partition('#')[0]}#/")
    page.get_by_label("Message", exact=True).fill("by thumb")
    page.keyboard.press("Enter")
    page.keyboard.type("and a line")
    page.get_by_role("button", name="Send").tap()
    expect(page.locator(".bubble")).to_have_text("by thumb\nand a line")
    ended(page)


def test_the_page_follows_the_answer_unless_people_read_further_up(make_page: MakePage) -> None:
    page = make_page(viewport={"width": 1280, "height": 500})
    lines = [f"line {n}\n\n" for n in range(60)]
    say(page, directive(text="".join(lines), deltas=lines, delta_delay_ms=40))
    expect(answer(page)).to_contain_text("line 20")
    expect(page.locator(".latest")).not_to_be_visible()
    page.locator(".transcript").evaluate("(node) => { node.scrollTop = 0; }")
    expect(page.locator(".latest")).to_be_visible()
    ended(page)
    assert page.locator(".transcript").evaluate("(node) => node.scrollTop") == 0
    page.locator(".latest").click()
    expect(answer(page).get_by_text("line 59")).to_be_in_viewport()


def test_an_address_that_leads_nowhere_is_no_dead_end(make_page: MakePage) -> None:
    page = make_page()
    for path in ("#/c/conv-none", "#/c/%E0%A4%A", "#/nowhere", "#/c/", "#//"):
        page.goto(page.url.partition("#")[0] + path)
        expect(page.locator(".empty h2, .welcome h2").first).to_be_visible()
        expect(page.get_by_role("link", name="New conversation")).to_be_visible()


def test_a_long_conversation_shows_its_end_and_offers_the_rest(
    make_page: MakePage, host: HostProcess
) -> None:
    with host.client() as client:
        made = client.post("/chat", json={"message": "the very first"}).json()["conversation_id"]
        for n in range(105):
            client.post("/chat", json={"message": f"message {n}", "conversation_id": made})
    page = make_page(f"#/c/{made}")
    expect(page.locator(".turn")).to_have_count(200)
    page.get_by_role("button", name="Show 12 earlier messages").click()
    expect(page.locator(".turn")).to_have_count(212)
    until(lambda: page.get_by_text("the very first", exact=True).count())
