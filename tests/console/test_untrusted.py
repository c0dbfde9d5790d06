"""Whatever models, tools and people write stays text: a corpus of scripts in disguise, shown everywhere."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import anyio
from playwright.sync_api import Browser, Page, expect

from shared.store import open_host_store
from shared.store.sql.lifetimes import Retention
from tests.console.conftest import MakeHost, MakePage, in_both
from tests.console.vectors import VECTORS
from tests.running import HostProcess, ModelProcess, directive

ALL = "\n\n".join(VECTORS)

KNOWN = (
    "a article aside b blockquote br button circle code dd details dialog div dl dt em footer form g "
    "h1 h2 h3 h4 h5 h6 header hr i input kbd label li line main nav ol option p path pre rect s section "
    "select span strong summary sup svg table tbody td text textarea th thead time title tr ul"
)
CHECK = """() => {
  const known = new Set(KNOWN.split(" "));
  const wrong = [];
  for (const node of document.querySelectorAll("body *")) {
    if (node.closest("noscript")) continue;
    if (!known.has(node.localName)) wrong.push(node.localName);
    for (const { name, value } of node.attributes) {
      if (/^on|^srcdoc$|^src$|^formaction$|^action$|^xlink/i.test(name)) wrong.push(`${name} ${value}`);
      if (name === "style" && !/^height: [^;]*;$/.test(value)) wrong.push(`style ${value}`);
      if (name !== "href" || value.startsWith("#")) continue;
      if (!/^(https?:\\/\\/|mailto:)/.test(value)) wrong.push(`href ${value}`);
      if (node.rel !== "noopener noreferrer") wrong.push(`rel ${value}`);
    }
  }
  return wrong;
}""".replace("KNOWN", f'"{KNOWN}"')


TOUCH = "(name) => document.querySelectorAll('body *').forEach((node) => node.dispatchEvent(new Event(name)))"


def poke(page: Page) -> None:
    """Look at what is there, then touch all of it as people would."""
    assert page.evaluate(CHECK) == []
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for event in ("mouseover", "focus", "toggle", "animationstart", "load", "error"):
        page.evaluate(TOUCH, event)
    assert page.evaluate(CHECK) == []
    assert page.evaluate("violations") == []


def test_the_corpus_is_large_enough() -> None:
    assert len(set(VECTORS)) == len(VECTORS) >= 60


@in_both
def test_each_text_alone_becomes_harmless_nodes(make_page: MakePage) -> None:
    page = make_page()
    wrong = page.evaluate(
        """async (vectors) => {
          const { markdown } = await import(new URL("console/markdown.js", location));
          const { personTurn } = await import(new URL("console/messages.js", location));
          const { ToolStep } = await import(new URL("console/steps.js", location));
          const found = [];
          for (const vector of vectors) {
            const step = new ToolStep({ tool: vector, input: { [vector]: vector, command: vector } });
            step.end({ is_error: true, preview: vector });
            const parts = [markdown(vector), personTurn(vector, { sender: vector }), step.node];
            document.querySelector("#main").append(...parts);
            for (const part of parts) {
              for (const node of part.querySelectorAll("script, img, iframe, object, embed, style, video")) {
                found.push([vector, node.localName]);
              }
              for (const link of part.querySelectorAll("a")) {
                if (!/^(https?|mailto):$/.test(link.protocol)) found.push([vector, link.href]);
              }
            }
            if (!parts[1].textContent.includes(vector)) found.push([vector, "changed"]);
          }
          return found;
        }""",
        list(VECTORS),
    )
    assert wrong == []
    poke(page)


def test_what_models_and_tools_write_is_text_while_it_comes_and_afterwards(
    make_page: MakePage, host: HostProcess
) -> None:
    tools = [
        {"name": "exec", "input": {"command": "cat <<'END'\n" + ALL + "\nEND"}},
        {"name": "read_file", "input": {"path": VECTORS[7]}},
        {"name": VECTORS[8][:60], "input": {VECTORS[0]: VECTORS[7]}},
        {"name": "mcp__picoclaw__send_message", "input": {"text": ALL}},
    ]
    page = make_page()
    steps = [{"text": ALL, "thinking": ALL, "tools": tools}, {"text": ALL}]
    page.get_by_role("checkbox", name="Think").check(force=True)
    page.get_by_label("Message").fill(ALL + directive(steps=steps))
    page.keyboard.press("Enter")
    page.locator(".turn.agent .foot span").first.wait_for()
    poke(page)
    page.reload()
    page.get_by_role("button", name="Steps").click()
    page.locator(".step").first.wait_for()
    poke(page)


def test_tasks_errors_names_and_ids_are_text(make_page: MakePage, make_host: MakeHost) -> None:
    host = make_host()
    # An id with a slash can't be asked for at all.
    odd = tuple(vector for vector in VECTORS if not {"/", "\n"} & set(vector))[:12]
    _seed(host, odd)
    host.start()
    with host.client() as client:
        for vector in VECTORS:
            body = {"prompt": vector, "schedule_type": "interval", "schedule_value": "3600000"}
            assert client.post("/task", json=body).status_code == 201, vector
        failing = directive(ALL, status=400, message=ALL)
        for id, vector in zip(odd, VECTORS[20:], strict=False):
            told: dict[str, Any] = {"message": vector, "conversation_id": id, "sender_name": vector[:200]}
            assert client.post("/chat", json=told).status_code == 200
        client.post("/chat", json={"message": failing, "conversation_id": odd[0], "sender_name": odd[1]})
    page = make_page(url=host.url)
    for id in odd[:3]:
        page.goto(f"{host.url}/console")
        page.get_by_role("link", name=id).first.click()
        page.locator(".turn.person").first.wait_for()
        poke(page)
    page.goto(f"{host.url}/console#/tasks")
    page.locator(".card").nth(len(VECTORS) - 1).wait_for()
    poke(page)
    page.goto(f"{host.url}/console#/usage")
    page.locator(".chart").wait_for()
    poke(page)
    for hostile in VECTORS[:8]:
        page.goto(f"{host.url}/console#/c/{hostile}")
        page.locator(".empty h2, .turn, .fault, .welcome").first.wait_for()
    poke(page)


def _seed(host: HostProcess, ids: tuple[str, ...]) -> None:
    """Make conversations of these ids: callers can't, but a channel may choose them."""

    async def seed() -> None:
        store = open_host_store(
            store_dir=Path(host.environment["STORE_DIR"]),
            local_db=Path(host.environment["LOCAL_DB_PATH"]),
            owner="seeding",
            retention=Retention(outbound_ms=1000, task_log=10),
        )
        for id in ids:
            await store.conversations.ensure(id, 1)
        await store.durable()
        await store.close()

    # The browser's loop runs in this thread.
    thread = Thread(target=anyio.run, args=(seed,))
    thread.start()
    thread.join(60)


@in_both
def test_the_browser_itself_would_refuse_markup_made_of_text(browser: Browser, host: HostProcess) -> None:
    page = browser.new_page()
    page.goto(f"{host.url}/console")
    refused = page.evaluate(
        """() => {
          try {
            document.querySelector("#app").innerHTML = "<b>x</b>";
            return false;
          } catch (error) {
            return error instanceof TypeError;
          }
        }"""
    )
    page.close()
    assert refused


NASTY = {
    "stars": "*a " * 60_000,
    "brackets": "[" * 100_000 + "](",
    "backticks": "` `` ``` " * 20_000,
    "angles": "<" * 150_000,
    "quotes": ">" * 100_000,
    "nested quotes": "\n".join(">" * n for n in range(300)),
    "lists": "\n".join(" " * (n % 12) + "- x" for n in range(20_000)),
    "fence": "```" + "a" * 150_000 + "`",
    "heading": "# " + " " * 150_000 + "x",
    "rules": "- " * 90_000,
    "table": "|" * 100_000 + "\n" + "|-" * 50_000,
    "underscores": "_a_" * 60_000,
    "addresses": "http://" * 25_000,
    "backslashes": "\\" * 150_000,
}


def test_no_text_keeps_the_page_busy(make_page: MakePage) -> None:
    page = make_page(signed_in=False)
    for name, text in NASTY.items():
        took = page.evaluate(
            """async (text) => {
              const { markdown } = await import(new URL("console/markdown.js", location));
              const start = performance.now();
              markdown(text);
              return performance.now() - start;
            }""",
            text,
        )
        # What took a square of the length would take minutes.
        assert took < 20000, f"{name}: {took:.0f} ms"


def test_a_message_of_tens_of_thousands_of_marks_is_shown_by_pages(
    make_page: MakePage, host: HostProcess, model: ModelProcess
) -> None:
    text = "".join(f"**word{n}** " for n in range(8_250))
    model.script({"text": text})
    with host.client() as client:
        made = client.post("/chat", json={"message": "much"}).json()
        assert made["result"].strip() == text.strip()
    page = make_page(f"#/c/{made['conversation_id']}")
    expect(page.locator(".turn")).to_have_count(2)
    nodes = "document.querySelectorAll('.turn strong').length"
    more = page.get_by_role("article", name="Agent").get_by_role("button", name="Show more")
    first = page.evaluate(nodes)
    assert 1_000 < first < 3_000
    more.click()
    assert first < page.evaluate(nodes) < 6_000
    for _ in range(2):
        more.click()
    assert page.evaluate(nodes) == 8_250
    expect(more).to_have_count(0)


MARKDOWN = [
    ("plain *em* **strong** ~~gone~~", "<p>plain <em>em</em> <strong>strong</strong> <s>gone</s></p>"),
    ("snake_case_name and 2*3*4", "<p>snake_case_name and 2<em>3</em>4</p>"),
    ("a `b*c*` ``d`e``", "<p>a <code>b*c*</code> <code>d`e</code></p>"),
    ("one\ntwo", "<p>one<br>two</p>"),
    ("- a\n- b\n  - c", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
    ("---", "<hr>"),
    ("**unclosed", "<p>**unclosed</p>"),
    ("a \\*b\\*", "<p>a *b*</p>"),
    ("(see https://example.com/a_b_c).", "<p>(see <a>https://example.com/a_b_c</a>).</p>"),
    ("<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>"),
    ("![cat](https://example.com/cat.png)", "<p><a>cat</a></p>"),
    (
        "[x](notes.md) README.md main.rs www.example.com",
        "<p>[x](notes.md) README.md main.rs www.example.com</p>",
    ),
    ("- [ ] a", '<ul><li class="task"><input type="checkbox" disabled="" aria-label="to do">a</li></ul>'),
    ("- [x] a", '<ul><li class="task"><input type="checkbox" disabled="" aria-label="done">a</li></ul>'),
    ("[x] no list", "<p>[x] no list</p>"),
    ("$x_1*y*z_2$", '<p><code class="math">$x_1*y*z_2$</code></p>'),
    (
        "\\(a_b\\) and \\[c*d*\\]",
        '<p><code class="math">\\(a_b\\)</code> and <code class="math">\\[c*d*\\]</code></p>',
    ),
    ("$$\n- a\n= b\n$$", '<p class="math">$$\n- a\n= b\n$$</p>'),
    ("$5, $10 and *US* $7", "<p>$5, $10 and <em>US</em> $7</p>"),
    ("`$a$`", "<p><code>$a$</code></p>"),
    ("## b\n\n# a", '<h3 class="heading m2">b</h3><h3 class="heading m1">a</h3>'),
]


@in_both
def test_markdown_becomes_the_nodes_that_it_means(make_page: MakePage) -> None:
    page = make_page(signed_in=False)
    for source, expected in MARKDOWN:
        made = page.evaluate(
            """async (text) => {
              const { markdown } = await import(new URL("console/markdown.js", location));
              const node = markdown(text);
              for (const link of node.querySelectorAll("a")) {
                for (const name of link.getAttributeNames()) link.removeAttribute(name);
              }
              for (const part of node.querySelectorAll("[dir]")) part.removeAttribute("dir");
              return node.innerHTML;
            }""",
            source,
        )
        assert made == expected, source


def test_a_text_that_grows_ends_as_the_whole_would(make_page: MakePage) -> None:
    page = make_page(signed_in=False)
    text = "\n\n".join(source for source, _ in MARKDOWN) + "\n\n" + ALL
    same = page.evaluate(
        """async (text) => {
          const { markdown, Markdown } = await import(new URL("console/markdown.js", location));
          const growing = new Markdown();
          for (let place = 0; place < text.length; place += 37) {
            growing.text = text.slice(0, place);
            growing.render();
          }
          growing.text = text;
          return growing.render().isEqualNode(markdown(text));
        }""",
        text,
    )
    assert same is True


CELLS = {
    "| a \\| pipe | `c|d` |\n|:-|-:|\n| `x|y` | 1 |\n| `p\\|q` | `` r|`s `` |": [
        ["a | pipe", "c|d"],
        ["x|y", "1"],
        ["p|q", "r|`s"],
    ],
    "> | a | b |\n> |---|---|\n> | `1|2` | 3 |\n> | 4 | `5|6` |": [["a", "b"], ["1|2", "3"], ["4", "5|6"]],
    "- x\n\n  | a | b |\n  |---|---|\n  | `1|2` | 3 |": [["a", "b"], ["1|2", "3"]],
    "| a | b |\r\n|---|---|\r\n| `1|2` | 3 |": [["a", "b"], ["1|2", "3"]],
    "| a |\n|---|\n| ` |": [["a"], ["`"]],
}


def test_a_table_has_all_its_cells(make_page: MakePage) -> None:
    page = make_page(signed_in=False)
    made = page.evaluate(
        """async (texts) => {
          const { markdown } = await import(new URL("console/markdown.js", location));
          return texts.map((text) => {
            const rows = [...markdown(text).querySelectorAll("tr")];
            return rows.map((row) => [...row.cells].map((cell) => cell.textContent));
          });
        }""",
        list(CELLS),
    )
    assert dict(zip(CELLS, made, strict=True)) == CELLS


def test_code_keeps_its_text_in_every_language_and_is_coloured(make_page: MakePage) -> None:
    page = make_page(signed_in=False)
    code = "def f(x):\n    return '<b>' + x  # note\n\ttab </script>"
    known = ("python", "js", "html", "json", "bash", "sql")
    for language in (*known, "no-such", "", "__proto__", "constructor"):
        text, parts = page.evaluate(
            """async ([code, language]) => {
              const { markdown } = await import(new URL("console/markdown.js", location));
              const node = markdown(`~~~${language}\n${code}\n~~~`).querySelector("pre code");
              return [node.textContent, node.querySelectorAll("span").length];
            }""",
            [code, language],
        )
        assert text == code, language
        assert (parts > 0) is (language in known), language


def test_a_footnote_is_reached_from_its_mark_and_back(make_page: MakePage, host: HostProcess) -> None:
    text = "One[^a] two[^b].\n\n[^a]: The *first*.\n[^b]: The second.\n\nMore."
    with host.client() as client:
        made = client.post("/chat", json={"message": directive("note", text=text)}).json()["conversation_id"]
    page = make_page(f"#/c/{made}")
    page.get_by_role("button", name="Footnote 2", exact=True).click()
    expect(page.locator(".footnotes li", has_text="The second.")).to_be_focused()
    page.get_by_role("button", name="Back to where footnote 2 is named").click()
    expect(page.get_by_role("button", name="Footnote 2", exact=True)).to_be_focused()
    assert page.url.endswith(made)


def test_each_text_is_read_in_its_own_direction(make_page: MakePage) -> None:
    page = make_page()
    directions = page.evaluate(
        """async () => {
          const { markdown } = await import(new URL("console/markdown.js", location));
          const node = markdown("\u05e9\u05dc\u05d5\u05dd\\n\\nhello\\n\\n```\\n\u05e9 = 1\\n```");
          document.querySelector("#main").append(node);
          return [...node.querySelectorAll("p, pre")].map((part) => getComputedStyle(part).direction);
        }"""
    )
    assert directions == ["rtl", "ltr", "ltr"]
    field = page.get_by_label("Message", exact=True)
    for text, direction in (("1. \u05e9\u05dc\u05d5\u05dd", "rtl"), ("hello \u05e9", "ltr"), ("", "ltr")):
        field.fill(text)
        assert field.get_attribute("dir") == direction
