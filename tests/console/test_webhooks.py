"""The page of webhooks: how each is, what it was told, and what to tell it once more."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import expect

from tests.console.conftest import MakeHost, MakePage
from tests.fakes.receiver import receiving


def test_a_webhook_is_tested_replayed_and_switched_off_and_on(
    make_page: MakePage, make_host: MakeHost, tmp_path: Path
) -> None:
    (tmp_path / "host0" / "home").mkdir(parents=True)
    config = {"version": 3, "webhooks": {"allowed_hosts": ["127.0.0.1"]}}
    (tmp_path / "host0" / "home" / "config.json").write_text(json.dumps(config))
    host = make_host().start()
    with receiving() as receiver, host.client() as client:
        client.post("/webhooks", json={"url": receiver.url, "events": ["run.ended"]})
        page = make_page("#/webhooks", url=host.url)
        card = page.locator(".card", has_text=receiver.url)
        card.get_by_role("button", name="Test").click()
        receiver.wait(1)
        card.get_by_text("What it was told").click()
        expect(card).to_contain_text("webhook.test")
        card.get_by_role("button", name="Replay webhook.test").click()
        first, second = receiver.wait(2)
        assert first.id == second.id
        card.get_by_role("button", name="Disable").click()
        expect(card).to_contain_text("switched off")
        card.get_by_role("button", name="Enable").click()
        expect(card).to_contain_text("enabled")
