"""What the offline model understands of plain words."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.models.offline.wishes import Wish, parse

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)  # a Saturday
Call = tuple[str, dict[str, object]]


def called(wishes: list[Wish]) -> list[Call | str]:
    """The tool and the input of each wish, or why it is unclear."""
    return [(one.tool, one.input) if not one.unclear else one.unclear for one in wishes]


def remember(text: str) -> Call:
    return "append_file", {"path": "MEMORY.md", "content": f"- {text}\n"}


def run(command: str) -> Call:
    return "exec", {"command": command}


def write(content: str, path: str, **more: bool) -> Call:
    return "write_file", {"path": path, "content": content, **more}


def read(path: str) -> Call:
    return "read_file", {"path": path}


def files(path: str = ".") -> Call:
    return "list_dir", {"path": path}


def send(text: str) -> Call:
    return "mcp__picoclaw__send_message", {"text": text}


def schedule(prompt: str, kind: str, value: str, zone: str = "") -> Call:
    task = {"prompt": prompt, "schedule_type": kind, "schedule_value": value}
    return "mcp__picoclaw__schedule_task", {**task, **({"timezone": zone} if zone else {})}


TASKS: Call = ("mcp__picoclaw__list_tasks", {})


@pytest.mark.parametrize(
    ("words", "wish"),
    [
        ("remember that I like tea and cake", remember("I like tea and cake")),
        ("Don't forget: the door code is 12", remember("the door code is 12")),
        ("run ls -l", run("ls -l")),
        ("execute `echo a and then echo b`", run("echo a and then echo b")),
        ("Could you please run the command `date`", run("date")),
        ("run if true; then cat a.txt; fi", run("if true; then cat a.txt; fi")),
        ("write hi to a.txt", write("hi\n", "a.txt")),
        ("write \"a b\" to 'x y.txt'", write("a b", "x y.txt")),
        ("write a letter to mum to the file letters/mum.txt.", write("a letter to mum\n", "letters/mum.txt")),
        ("overwrite a.txt with `x`", write("x", "a.txt", overwrite=True)),
        ("append milk to list.txt", ("append_file", {"path": "list.txt", "content": "milk\n"})),
        ("read a.txt", read("a.txt")),
        ("show me the file src/b.py", read("src/b.py")),
        ("list files", files()),
        ("show my files in src", files("src")),
        ("ls", files()),
        ("tasks", TASKS),
        ("list all my scheduled tasks", TASKS),
        ("cancel task task-12.", ("mcp__picoclaw__cancel_task", {"task_id": "task-12"})),
        ("send a message hello there", send("hello there")),
        ("send me a message saying 'half way'", send("half way")),
        ("remind me to stand up", send("Reminder: stand up")),
        ("What did I say?", ("", {})),
        ("what do you remember about me", read("MEMORY.md")),
    ],
)
def test_plain_words_make_one_wish(words: str, wish: Call) -> None:
    assert called(parse(words, NOW)) == [wish]


@pytest.mark.parametrize(
    ("words", "prompt", "at"),
    [
        ("every day at 9 say hello", "say hello", ("cron", "0 9 * * *")),
        ("every day at 7:15pm: standup", "standup", ("cron", "15 19 * * *")),
        ("every monday at 8:30 run date", "run date", ("cron", "30 8 * * MON")),
        ("each weekday at 12 eat", "eat", ("cron", "0 12 * * MON-FRI")),
        ("every day water the plants", "water the plants", ("cron", "0 9 * * *")),
        ("every 5 minutes check mail", "check mail", ("interval", "300000")),
        ("every hour run date", "run date", ("interval", "3600000")),
        ("run date every 30 seconds", "run date", ("interval", "30000")),
        ("in 10 minutes run date", "run date", ("once", "2026-01-31T09:40:00", "UTC")),
        ("remind me in an hour to stretch", "remind me to stretch", ("once", "2026-01-31T10:30:00", "UTC")),
        (
            "remind me to stretch in 5 minutes.",
            "remind me to stretch",
            ("once", "2026-01-31T09:35:00", "UTC"),
        ),
    ],
)
def test_words_about_time_make_a_schedule(words: str, prompt: str, at: tuple[str, ...]) -> None:
    assert called(parse(words, NOW)) == [schedule(prompt, *at)]


@pytest.mark.parametrize(
    "words",
    ["", "   ", "hello", "show mercy", "at home I run a lot", "in 5 easy steps", "it rains every day"],
)
def test_words_without_a_wish_make_none(words: str) -> None:
    assert parse(words, NOW) == []


def test_a_statement_about_time_is_noted_and_not_scheduled() -> None:
    assert called(parse("remember that I swim every monday", NOW)) == [remember("I swim every monday")]


@pytest.mark.parametrize(
    "words",
    [
        "every day at 25 run date",
        "every day at 9:5 run date",
        "every 0 minutes run date",
        "in 10 minutes",
    ],
)
def test_a_time_that_says_too_little_is_named_and_not_guessed(words: str) -> None:
    (wish,) = parse(words, NOW)
    assert wish.unclear
    assert not wish.tool


def test_without_the_time_of_the_message_nothing_is_counted_from_now() -> None:
    (wish,) = parse("in 10 minutes run date")
    assert "not told what time" in wish.unclear
    assert not wish.tool


@pytest.mark.parametrize(
    ("words", "wishes"),
    [
        ("read a.txt and list files", [read("a.txt"), files()]),
        ("send a message hi, and list tasks", [send("hi"), TASKS]),
        ("write hi to a.txt and then run cat a.txt", [write("hi\n", "a.txt"), run("cat a.txt")]),
        ("run ls, then read x.txt, and then run date", [run("ls"), read("x.txt"), run("date")]),
        ("run `a`; run b", [run("a"), run("b")]),
        ("remember I am Bob\nlist tasks", [remember("I am Bob"), TASKS]),
        (
            "every day at 9 run date and then read a.txt; list tasks",
            [schedule("run date and then read a.txt", "cron", "0 9 * * *"), TASKS],
        ),
    ],
)
def test_joined_wishes_come_one_after_the_other(words: str, wishes: list[Call | str]) -> None:
    assert called(parse(words, NOW)) == wishes


def test_words_around_a_wish_are_named_as_not_understood() -> None:
    assert called(parse("good morning! run ls")) == [
        "I did not understand this part. (`good morning`)",
        run("ls"),
    ]


_FRAGMENTS = """\
run |write |to a.txt|read |remember |list tasks|send a message |tell me |please |remind me |\
every |day |at 9| 99:99|pm |in 10 minutes |tomorrow | and | then |; |. |`|"|'|``` |🍵|\0| |.|
"""
_fragments = st.sampled_from(_FRAGMENTS.split("|"))


@given(
    st.text() | st.lists(_fragments, max_size=30).map("".join),
    st.none() | st.datetimes(timezones=st.just(UTC)),
)
def test_no_words_raise(words: str, now: datetime | None) -> None:
    for wish in parse(words, now):
        assert wish.tool or wish.recalls or wish.unclear


@pytest.mark.parametrize(
    "words",
    [
        "run x" + " " * 19_900 + "y",
        "write x" + " to" * 6_000,
        "write x to " + " " * 19_000 + "!",
        "a, " * 6_000,
        "run a and then " * 1_300,
        "every day " * 1_900,
        "run date every day" + " " * 19_000 + "x",
        "please " * 2_800,
        "```" + "`" * 19_000,
        "'a " * 6_600,
        "remind me to " + "tomorrow at 9 " * 1_400,
        "tell me x " + "while you " * 1_900,
        "list " + "my " * 6_000,
    ],
)
def test_long_words_cost_no_more_than_their_length(words: str) -> None:
    started = time.process_time()
    parse(words, NOW)
    assert time.process_time() - started < 1.0


def test_words_beyond_the_limit_are_no_wish() -> None:
    assert parse("write " + "x" * 20_000 + " to a.txt") == []
