"""The page of principals, and what a token of one sees of the console."""

from __future__ import annotations

import json
from typing import Any

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
    ann = one(users, "Ann", scopes=["chat", "usage"])
    with users.client() as client:
        made = client.post(f"/principals/{ann['id']}/tokens", json={})
        text = json.loads(made.content)["token"]
    page = make_page(url=users.url, signed_in=False)
    knock(page, text)
    expect(page.get_by_text("You are Ann.")).to_be_visible()
    places = page.get_by_role("navigation", name="Places")
    assert places.get_by_role("link").all_inner_texts() == ["Usage", "Webhooks"]
