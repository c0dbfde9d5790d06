"""Markdown becomes HTML that Telegram always takes, and says the same."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.channels.telegram.markup import to_html
from tests.examples import examples
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
        ("***x***", "<i><b>x</b></i>"),
        ("## **Title** of `x`", "<b>Title of <code>x</code></b>"),
        (
            "1. Run:\n\n   ```sh\n   ls *\n     x\n   ```\n2. Done",
            '1. Run:\n\n<pre><code class="language-sh">ls *\n  x</code></pre>\n2. Done',
        ),
        ("- a\n\n    ```\n    code _x_\n    ```", "• a\n\n<pre>code _x_</pre>"),
        ("- ```\n  x\n  ```", "•\n<pre>x</pre>"),
        ("> quote\n> ```\n> x\n> ```", "<blockquote>quote</blockquote>\n<pre>x</pre>"),
        (r"2 \* 3 \_x\_ snake\_case", "2 * 3 _x_ snake_case"),
        ("**https://a.b/_x_/*y*?q=c_d_e** too", "<b>https://a.b/_x_/*y*?q=c_d_e</b> too"),
        ("[l_](https://a.b/c_(d)_&copy;)", '<a href="https://a.b/c_(d)_&amp;copy;">l_</a>'),
        ("![p](https://a.b/c.png)", '<a href="https://a.b/c.png">p</a>'),
        ("[1]: https://a.b/_c_", "[1]: https://a.b/_c_"),
        ("__init__.py, __name__ and __two words__", "__init__.py, __name__ and <b>two words</b>"),
        ("ls /var/*.log /tmp/*.txt *.py **/*.js", "ls /var/*.log /tmp/*.txt *.py **/*.js"),
        ("find . -name '*.py' -o -name '*.c'", "find . -name '*.py' -o -name '*.c'"),
        ("**/etc/hosts** is *here*.", "<b>/etc/hosts</b> is <i>here</i>."),
        (r"C:\*.* and \\srv\_x_", r"C:\*.* and \\srv\_x_"),
        ("make \\\n  all", "make \\\nall"),
        ("&copy; &amp;", "&amp;copy; &amp;amp;"),
        ("这是**重点**内容", "这是<b>重点</b>内容"),
        ("`a\nb`", "<code>a\nb</code>"),
        ("text\n---\n\n\nmore", "text\n---\n\n\nmore"),
        ("-\n- a\n3. b", "•\n• a\n3. b"),
        ("> " * 99 + "x", "&gt; " * 99 + "x"),
    ],
)
def test_what_telegram_can_show_is_shown(markdown: str, html: str) -> None:
    assert to_html(markdown) == html


@settings(max_examples=examples(500))
@given(st.lists(PIECES | OTHERS | st.text(max_size=8), max_size=40).map("".join))
def test_whatever_comes_in_telegram_can_read_it(markdown: str) -> None:
    assert plain_text({"text": to_html(markdown) + "x", "parse_mode": "HTML"}).endswith("x")


SAFE = "abcXYZ019"
PATHS = st.text(f"{SAFE}*_~.-&;=#/\\", min_size=1, max_size=12)
ADDRESSES = st.builds(lambda path, end: f"https://a.b/{path}{end}", PATHS, st.sampled_from(SAFE))
COMMANDS = st.text(
    st.characters(codec="utf-8", exclude_characters="`\r\n\0", exclude_categories=["Cc", "Cs"])
).map(lambda text: f"x{text}x")
INLINE = st.sampled_from(
    ["**{}**", "*{}*", "***{}***", "_{}_", "~~{}~~", "words {} words", "[{}](https://c.d)", "({})"]
)


def nested(inner: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
    """Return pairs of what has to survive and Markdown with it inside, one step deeper."""
    wrapped = st.builds(lambda pair, around: (pair[0], around.replace("{}", pair[1])), inner, INLINE)
    return wrapped | inner


def in_blocks(inner: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
    def within(pair: tuple[str, str], first: str) -> tuple[str, str]:
        rest = first if first == "> " else " " * len(first)
        return pair[0], "\n".join(
            (first if at == 0 else rest) + line for at, line in enumerate(pair[1].split("\n"))
        )

    return st.builds(within, inner, st.sampled_from(["- ", "* ", "1. ", "12) ", "> "])) | inner


SPANS = st.recursive(
    ADDRESSES.map(lambda address: (address, address)) | COMMANDS.map(lambda text: (text, f"`{text}`")), nested
)
FENCES = st.lists(COMMANDS, min_size=1, max_size=4).map(
    lambda lines: ("\n".join(lines), "\n".join(("```sh", *lines, "```")))
)


@settings(max_examples=examples(500))
@given(st.recursive(SPANS | FENCES, in_blocks, max_leaves=4))
def test_no_command_and_no_address_changes_a_character_however_it_is_nested(pair: tuple[str, str]) -> None:
    kept, markdown = pair
    html = to_html(f"Look:\n\n{markdown}\n\nThat's it.")
    assert kept in plain_text({"text": html, "parse_mode": "HTML"}), html


@pytest.mark.parametrize(
    "piece", ["**a ", "`", "_x ", "[a](", "~~b ", "> ", "*", "[", "**`", "\\*", "://", "__a__"]
)
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (4096 // len(piece))
    started = time.process_time()
    to_html(text)
    assert time.process_time() - started < 0.5
