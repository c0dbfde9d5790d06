"""The pictures in the docs, made from the console as it is: ``make screenshots``."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.console.conftest import MakeHost, MakePage
from tests.console.test_console import ended, say

IMAGES = Path(__file__).parents[2] / "docs/images"
MOST_BYTES = 200_000


def take(page: Page, name: str) -> None:
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path, animations="disabled")
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_the_pictures_in_the_docs_are_taken(make_page: MakePage, make_host: MakeHost) -> None:
    IMAGES.mkdir(exist_ok=True)
    host = make_host(ANTHROPIC_BASE_URL="", ANTHROPIC_API_KEY="").start()
    page = make_page(url=host.url, theme="light", viewport={"width": 1100, "height": 700})
    say(page, "write hello to notes.txt and then run cat notes.txt")
    ended(page)
    say(page, "every day at 9 tell me the news")
    ended(page)
    take(page, "conversation")
    address = page.url
    page.goto(f"{host.url}/console#/tasks")
    page.get_by_text("tell me the news").first.wait_for()
    take(page, "tasks")
    phone = make_page(url=host.url, theme="dark", viewport={"width": 390, "height": 760})
    phone.goto(address)
    phone.locator(".turn.agent").last.wait_for()
    take(phone, "phone")
