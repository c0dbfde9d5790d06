"""No barriers: axe-core on every place, in both themes and at a phone's width; nothing runs over the edge."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.console.conftest import MakePage
from tests.running import HostProcess, directive

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PHONE = {"width": 390, "height": 844}
# Each browser has both themes and both widths, and each theme has both widths.
LOOKS: dict[str, tuple[str, dict[str, Any]]] = {
    "light": ("chromium", {"color_scheme": "light"}),
    "dark phone": ("chromium", {"color_scheme": "dark", "viewport": PHONE, "has_touch": True}),
    "dark in Firefox": ("firefox", {"theme": "dark"}),
    "light phone in Firefox": ("firefox", {"viewport": PHONE, "theme": "light"}),
}
every_look = pytest.mark.parametrize(("browser", "look"), LOOKS.values(), ids=LOOKS, indirect=["browser"])

RICH = """# Title

Some **bold**, *italic*, `code`, ~~gone~~ and a [link](https://example.com/x).

- one
  - two

> quoted

```python
print("a line that is far too long for a phone, so that it has to be scrolled to be read at all")
```

```js
// every colour: "of the common kinds"
@decorated class A extends B { static n = 0x1f;
go(x) { return /re/g.test(`${x}`) ? null : console.log("s", true); } }
```

```diff
- gone
+ new
```

```html
<p class="a">x</p>
```

| a | b |
|:--|--:|
| 1 | `2|3` |

- [ ] to do
- [x] done

One[^1], and $x_1$.

[^1]: A note.
"""


LATE = {"schedule_type": "once", "schedule_value": "2020-01-01", "run_if_past": True}


@pytest.fixture(scope="package")
def conversation(host: HostProcess) -> str:
    """A conversation with everything that can be shown, and tasks in every state."""
    tools = [
        {"name": "exec", "input": {"command": "echo hello"}},
        {"name": "read_file", "input": {"path": "nowhere"}},
    ]
    message = directive(
        "look", steps=[{"text": "Looking.", "thinking": "hm", "tools": tools}, {"text": RICH}]
    )
    with host.client() as client:
        body = {"message": message, "show_tool_use": True, "thinking": True}
        made: str = client.post("/chat", json=body).json()["conversation_id"]
        client.post("/chat", json={"message": directive(status=400), "conversation_id": made})
        task = {"prompt": "say hi", "schedule_type": "interval", "schedule_value": "3600000"}
        client.post("/task", json=task)
        paused = client.post("/task", json={**task, "prompt": "p" * 400}).json()["id"]
        client.put(f"/task/{paused}", json={"status": "paused"})
        client.post("/task/trigger", json={"task_id": paused})
        client.post("/task", json={**LATE, "prompt": "late"})
        client.put("/admin/memory", json={"text": RICH, "version": None})
    return made


# Telling also of each node that is well takes most of the time.
RUN = """async (rules) =>
  (await axe.run(document, { runOnly: rules, resultTypes: ["violations"] })).violations
"""


def barriers(page: Page, axe: str) -> list[str]:
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(axe)
    return [
        f"{fault['id']}: {node['target']} {node['failureSummary']}"
        for fault in page.evaluate(RUN, RULES)
        for node in fault["nodes"]
    ]


def overflowing(page: Page) -> list[str]:
    """What is wider than the window and not inside something that scrolls."""
    found: list[str] = page.evaluate("""() => [...document.querySelectorAll("#app *")]
      .filter((node) => node.getBoundingClientRect().right > innerWidth + 1)
      .filter((node) => !node.closest("pre, .table, .chart, .side, .unseen, .list, .step, h1"))
      .map((node) => `${node.tagName}.${node.className}`)""")
    return found


@every_look
def test_the_door_is_free_of_barriers(make_page: MakePage, axe: str, look: dict[str, Any]) -> None:
    page = make_page(signed_in=False, **look)
    page.get_by_label("API token").wait_for()
    page.get_by_label("API token").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").filter(has_text="does not know").wait_for()
    assert barriers(page, axe) == [], "the door, refused"


@every_look
def test_every_place_behind_the_door_is_free_of_barriers(
    make_page: MakePage, axe: str, conversation: str, look: dict[str, Any]
) -> None:
    page = make_page(reduced_motion="reduce", **look)
    page.locator(".wish").first.wait_for()

    def look_at(place: str, sign: str) -> None:
        page.goto(page.url.partition("#")[0] + place)
        page.locator(sign).first.wait_for()
        check(place)

    def check(what: str) -> None:
        assert barriers(page, axe) == [], what
        assert overflowing(page) == [], what

    check("new conversation")
    look_at(f"#/c/{conversation}", ".prose table")
    page.get_by_role("button", name="Steps").first.click()
    page.locator(".step").first.wait_for()
    page.evaluate("document.querySelectorAll('.step').forEach((step) => { step.open = true; })")
    check("steps")
    page.get_by_role("button", name="Edit", exact=True).click()
    check("editing")
    page.keyboard.press("Escape")
    for dialog in ("Rename", "Export"):
        page.get_by_role("button", name=f"{dialog} this conversation").click()
        check(dialog)
        page.get_by_role("button", name="Cancel").click()
    look_at("#/tasks", ".card")
    page.locator('[id^="log-"]').last.click()
    page.locator(".log").wait_for()
    check("log")
    page.get_by_role("button", name="New task").click()
    page.get_by_label("What to say to the agent").wait_for()
    check("form")
    page.keyboard.press("Escape")
    page.get_by_role("button", name=re.compile("^Edit:")).last.click()
    page.get_by_role("heading", name="Edit the task").wait_for()
    check("task")
    page.keyboard.press("Escape")
    look_at("#/usage", ".chart")
    look_at("#/memory", ".prose")
    page.get_by_role("button", name="Edit").click()
    check("writing the memory")
    look_at("#/skills", ".card")
    look_at("#/servers", ".empty h2")
    look_at("#/webhooks", ".empty h2")
    look_at("#/principals", ".empty h2")
    look_at("#/workspace", ".entries")
    look_at("#/workspace/MEMORY.md", ".prose")
    look_at("#/workspace/nowhere", ".empty h2")
    look_at("#/c/conv-none", ".empty h2")
    opener = page.locator(".opener")
    if opener.is_visible():
        opener.click()
        page.locator(".side.open").wait_for()
        assert barriers(page, axe) == [], "the drawer"
        page.keyboard.press("Escape")
    page.locator("#main").focus()
    page.keyboard.press("?")
    page.get_by_role("heading", name="Keyboard").wait_for()
    check("keys")


def test_nothing_runs_over_the_edge_of_the_narrowest_screen(make_page: MakePage, conversation: str) -> None:
    page = make_page(viewport={"width": 320, "height": 568})
    for place, sign in (
        ("#/", ".wish"),
        (f"#/c/{conversation}", ".prose table"),
        ("#/tasks", ".card"),
        ("#/usage", ".chart"),
        ("#/memory", ".prose"),
        ("#/skills", ".card"),
        ("#/workspace", ".entries"),
    ):
        page.goto(page.url.partition("#")[0] + place)
        page.locator(sign).first.wait_for()
        assert overflowing(page) == [], place
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
    slow = directive(text="a b", deltas=["a ", "b"], hang_after_deltas=1)
    page.goto(page.url.partition("#")[0] + f"#/c/{conversation}")
    for text in (slow, "sent next", "still being written"):
        page.get_by_label("Message", exact=True).fill(text)
        if text != "still being written":
            page.keyboard.press("Enter")
            page.get_by_role("button", name="Stop the answer").wait_for()
    page.get_by_text("Sent next:").wait_for()
    assert overflowing(page) == []
    for name in ("Stop the answer", "Send next"):
        assert page.get_by_role("button", name=name).is_visible(), name
    page.get_by_role("button", name="Don’t send: sent next").click()
    page.get_by_role("button", name="Stop the answer").click()
    page.get_by_role("button", name="Send", exact=True).wait_for()
