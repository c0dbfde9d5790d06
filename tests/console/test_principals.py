"""The page of principals, and what a token of one sees of the console."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import MakeHost, MakePage, knock
from tests.running import HostProcess

WEAK = {"PICOCLAW_PRINCIPALS_ISOLATION": "weak"}


@pytest.fixture
def users(make_host: MakeHost) -> HostProcess:
    return make_host(**WEAK).start()


def one(host: HostProcess, name: str, **terms: Any) -> dict[str, Any]:
    with host.client() as client:
        made: dict[str, Any] = client.post("/principals", json={"name": name, **terms}).json()
        return made


def token_of(host: HostProcess, principal: dict[str, Any]) -> str:
    with host.client() as client:
        made = client.post(f"/principals/{principal['id']}/tokens", json={})
        return str(made.json()["token"])


def card(page: Page, name: str) -> Any:
    return page.get_by_role("article", name=name)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_operator_makes_limits_suspends_and_deletes_principals(
    make_page: MakePage, users: HostProcess, width: int
) -> None:
    page = make_page("#/principals", url=users.url, viewport={"width": width, "height": 800})
    page.get_by_text("Nobody but you").wait_for()
    page.get_by_role("button", name="New principal").click()
    page.get_by_label("Name").fill("Ann <b>")
    page.get_by_role("button", name="Make it").click()
    ann = card(page, "Ann <b>")
    ann.get_by_role("button", name="Limits").click()
    page.get_by_label("Tokens a day").fill("500000")
    before = ann.element_handle()
    page.get_by_role("button", name="Save").click()
    page.wait_for_function("card => !card.isConnected", arg=before)  # the page shows what is stored now
    ann.get_by_text("Usage and limits").click()
    expect(ann.get_by_role("row", name="Tokens a day")).to_contain_text("500000")
    ann.get_by_role("button", name="Token").click()
    page.get_by_label("What it is for").fill("laptop")
    page.get_by_role("button", name="Make it").click()
    text = page.get_by_label("It is shown this once").input_value()
    page.get_by_role("button", name="I have it").click()
    with users.client(text) as client:
        me = client.get("/me").json()
        assert (me["name"], me["budgets"]["day"]["tokens"], me["operator"]) == ("Ann <b>", 500_000, False)
        ann.get_by_role("button", name="Suspend").click()
        expect(ann.get_by_text("suspended")).to_be_visible()
        assert client.get("/me").json()["code"] == "suspended"
        ann.get_by_role("button", name="Resume").click()
        expect(ann.get_by_text("active")).to_be_visible()
    ann.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    expect(ann.get_by_role("button", name="Delete")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_principal_sees_who_it_is_and_the_pages_that_its_token_is_for(
    make_page: MakePage, users: HostProcess
) -> None:
    page = make_page(url=users.url, signed_in=False)
    knock(page, token_of(users, one(users, "Ann", scopes=["chat", "usage"])))
    expect(page.get_by_text("You are Ann.")).to_be_visible()
    places = page.get_by_role("navigation", name="Places")
    assert places.get_by_role("link").all_inner_texts() == ["Usage", "Webhooks"]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_next_one_at_a_device_sees_nothing_of_the_one_before(
    make_page: MakePage, users: HostProcess, width: int
) -> None:
    ann, bob = (token_of(users, one(users, name)) for name in ("Ann", "Bob"))
    with users.client(ann) as client:
        said = client.post("/chat", json={"message": "where are the apples?"}).json()
        client.post("/chat", json={"message": "the main thing", "conversation_id": "main"})
    hers = f"#/c/{said['conversation_id']}"
    page = make_page(hers, url=users.url, signed_in=False, viewport={"width": width, "height": 800})

    def opened() -> None:
        if width < 800:
            page.get_by_role("button", name="Conversations").click()

    knock(page, ann)
    page.locator(".person").get_by_text("where are the apples?").wait_for()
    page.goto(f"{users.url}/console#/c/main")
    page.get_by_text("the main thing").first.wait_for()
    page.get_by_role("textbox", name="Message").fill("a draft of hers")
    queued = "sessionStorage.setItem('picoclaw.next', JSON.stringify({main: [{text: 'sent next'}]}))"
    page.evaluate(queued)
    opened()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("API token").wait_for()
    assert page.evaluate("[Object.keys(sessionStorage), location.hash]") == [[], ""]
    knock(page, bob)
    page.get_by_text("What shall we do?").wait_for()
    expect(page.get_by_role("textbox", name="Message")).to_have_value("")
    opened()
    expect(page.get_by_text("You are Bob.")).to_be_visible()
    conversations = page.get_by_role("navigation", name="Conversations")
    expect(conversations.get_by_role("link")).to_have_count(1)  # main, which everybody has
    page.get_by_label("Search conversations").fill("apples")
    expect(page.get_by_text("Nothing found.")).to_be_visible()
    page.goto(f"{users.url}/console#/c/main")
    expect(page.get_by_text("Nothing has been said here yet.")).to_be_visible()
    expect(page.get_by_role("textbox", name="Message")).to_have_value("")
    for place in (hers.removeprefix("#/"), f"c/{quote(said['conversation_id'] + '/files')}"):
        page.goto(f"{users.url}/console#/{place}")
        expect(page.get_by_role("heading", name="This conversation is not here")).to_be_visible()
        expect(page.get_by_role("textbox", name="Message")).to_have_value("")
    page.goto(f"{users.url}/console#/workspace//{said['conversation_id']}")
    expect(page.get_by_role("main").get_by_text("not found")).to_be_visible()
    assert "apples" not in page.content()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_who_comes_back_after_the_token_ended_finds_the_draft_and_another_one_does_not(
    make_page: MakePage, users: HostProcess
) -> None:
    principals = [one(users, name) for name in ("Ann", "Bob")]
    ann, bob = (token_of(users, each) for each in principals)
    page = make_page("#/tasks", url=users.url, signed_in=False)
    knock(page, ann)
    page.get_by_role("heading", name="Tasks", level=1).wait_for()
    page.goto(f"{users.url}/console#/")
    page.get_by_role("textbox", name="Message").fill("a draft of hers")
    for again, kept in ((token_of(users, principals[0]), "a draft of hers"), (bob, "")):
        page.evaluate("sessionStorage.setItem('picoclaw.token', 'pico_ended')")
        page.get_by_text("The host no longer knows this token.").wait_for()
        knock(page, again)
        expect(page.get_by_role("textbox", name="Message")).to_have_value(kept)


def test_the_operator_s_pages_are_no_place_for_a_principal(make_page: MakePage, users: HostProcess) -> None:
    page = make_page("#/principals", url=users.url, signed_in=False)
    knock(page, token_of(users, one(users, "Ann", scopes=["chat"])))
    for place in ("principals", "memory", "skills", "servers", "tasks", "usage", "workspace"):
        page.goto(f"{users.url}/console#/{place}")
        expect(page.get_by_text("Your token is not for this page.")).to_be_visible()
        expect(page.get_by_role("button", name="New")).to_have_count(0)
    page.locator("body").press("h")
    page.get_by_role("heading", name="Webhooks", level=1).wait_for()
    page.locator("body").press("r")
    page.locator("body").press("?")
    expect(page.get_by_role("dialog").get_by_text("Webhooks")).to_be_visible()
    expect(page.get_by_role("dialog").get_by_text("Principals")).to_have_count(0)
    assert page.evaluate("location.hash") == "#/webhooks"
