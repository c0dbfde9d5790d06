"""Markdown becomes HTML that Telegram always takes, and says the same."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.channels.telegram.markup import to_html
from tests.fakes.bot_api import plain_text

PIECES = st.sampled_from(
    ["**", "__", "*", "_", "~~", "`", "```", "\n", "```py\n", "[a](https://b.c)", "](", "# ", "> ", "- "]
)
OTHERS = st.sampled_from(["| x |", "<b>", "</pre>", "&amp;", '"', "word", " ", "~~~"])


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("plain & <simple>", "plain &amp; &lt;simple&gt;"),
        ("**bold** and *italic* and ~~gone~~", "<b>bold</b> and <i>italic</i> and <s>gone</s>"),
        ("**bold with `code` in it**", "<b>bold with <code>code</code> in it</b>"),
        ("`**not bold**`", "<code>**not bold**</code>"),
        ("snake_case_name and 2*3*4", "snake_case_name and 2*3*4"),
        ("## Title ##", "<b>Title</b>"),
        ("# C#", "<b>C#</b>"),
        ("``a` b", "``a` b"),
        ("* one\n  - two", "• one\n  • two"),
        ("> said\n> so", "<blockquote>said\nso</blockquote>"),
        ("| a | b |\n|---|---|", "<pre>| a | b |\n|---|---|</pre>"),
        ("```c++\na < b\n```", '<pre><code class="language-c++">a &lt; b</code></pre>'),
        ("```\nopen", "<pre>open</pre>"),
        ('[x](https://a.b/?q="&c)', '<a href="https://a.b/?q=&quot;&amp;c">x</a>'),
        ("[x](javascript:alert)", "[x](javascript:alert)"),
    ],
)
def test_what_telegram_can_show_is_shown(markdown: str, html: str) -> None:
    assert to_html(markdown) == html


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES | OTHERS | st.text(max_size=8), max_size=40).map("".join))
def test_whatever_comes_in_telegram_can_read_it(markdown: str) -> None:
    assert plain_text({"text": to_html(markdown) + "x", "parse_mode": "HTML"}).endswith("x")


@pytest.mark.parametrize("piece", ["**a ", "`", "_x ", "[a](", "~~b ", "> ", "*", "[", "**`"])
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (4096 // len(piece))
    started = time.process_time()
    to_html(text)
    assert time.process_time() - started < 0.5
