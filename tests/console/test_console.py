"""The console as people use it: talking, stopping, coming back, tasks, usage, keys, a phone."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Page, Request, expect

from tests.console.conftest import MakeHost, MakePage, knock, sign_in
from tests.console.wire import Wire
from tests.http.conftest import configure
from tests.running import TOKEN, HostProcess, directive, until

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
    knock(page, "wrong")
    expect(page.get_by_role("alert")).to_have_text("The host does not know this token.")
    sign_in(page)
    say(page, "hello")
    ended(page)
    assert TOKEN not in page.content()
    assert TOKEN not in page.url
    assert not any(TOKEN in request.url for request in seen)
    assert TOKEN not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    asked = [request for request in seen if "/chat" in request.url]
    assert asked
    assert all(request.headers["authorization"].startswith("Bearer ") for request in asked[1:])
    files = [request for request in seen if "/console" in request.url]
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


def test_the_tab_stays_signed_in_over_a_reload_and_another_one_does_not(make_page: MakePage) -> None:
    page = make_page()
    page.reload()
    expect(page.get_by_role("heading", name="What shall we do?")).to_be_visible()
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_label("API token")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API token")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_token_that_is_no_longer_good_leads_back_to_the_door(make_page: MakePage) -> None:
    page = make_page()
    page.evaluate("sessionStorage.setItem('picoclaw.token', 'old')")
    page.goto(f"{page.url}#/tasks")
    expect(page.get_by_role("alert")).to_have_text("The host no longer knows this token.")


# Talking


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


def test_a_run_that_goes_on_is_joined_when_its_conversation_is_opened(
    make_page: MakePage, host: HostProcess
) -> None:
    page = make_page()
    say(page, directive("slowly", **SLOW))
    expect(answer(page)).to_contain_text("word2")
    page.reload()
    expect(answer(page)).to_contain_text("word2")
    expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
    ended(page)
    assert answer(page).locator(".prose").inner_text().split() == SLOW["text"].split()


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


def test_a_lost_connection_costs_no_word_and_doubles_none(make_page: MakePage, host: HostProcess) -> None:
    with Wire(host.port) as wire:
        page = make_page(url=wire.url)
        say(page, directive("over a bad wire", **SLOW))
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
