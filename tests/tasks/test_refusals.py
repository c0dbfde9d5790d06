"""Every wrong field is refused with a sentence that names it, and a refused request leaves nothing behind."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidInput, NotFound
from shared.principals import EVERYTHING
from shared.schedules import first_slot, parse
from shared.store.sqlite.store import SqliteStore
from shared.task_values import Task
from shared.tasks import TaskService
from tests.examples import examples

NOW = 1_800_000_000_000
HOME = "conv-home"
GOOD: dict[str, Any] = {
    "reach": EVERYTHING,
    "conversation_id": HOME,
    "prompt": "Look around",
    "schedule_type": "cron",
    "schedule_value": "0 9 * * *",
    "timezone": "UTC",
    "context_mode": "isolated",
    "catch_up": "once",
    "id": "task-1",
    "now": NOW,
}

FIVE = "schedule_value: cron takes 5 fields (minute hour day-of-month month day-of-week), got "
TAKES = ", *, lists and /steps"
WEEKDAYS = f"0-7 or SUN-SAT, a range from low to high{TAKES}"
LONGER = "; use schedule_type interval for longer ones"
NO_INTERVAL = " is not an interval; it takes whole milliseconds in digits, such as 60000"
NO_TIME = " is not a time; once takes a local time such as 2027-03-01T09:00:00, or a date"
ZONED = " carries a zone; give a local time such as 2027-03-01T09:00:00, or a date, and the zone in timezone"
NO_DATE = " is not in the calendar or on the clock"
NO_ZONE = " is not an IANA time zone; use one such as Europe/Berlin or UTC"
BAD_ID = "id: takes 1 to 128 letters, digits, dots, dashes and underscores, no dot first"

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"schedule_type": ""}, "schedule_type: must be cron, interval or once"),
    ({"schedule_type": "hourly"}, "schedule_type: must be cron, interval or once"),
    ({"schedule_type": "CRON"}, "schedule_type: must be cron, interval or once"),
    ({"schedule_type": "cron "}, "schedule_type: must be cron, interval or once"),
    ({"schedule_type": 7}, "schedule_type: must be a string"),
    ({"schedule_type": None}, "schedule_type: must be a string"),
    ({"schedule_value": ""}, "schedule_value: must not be blank"),
    ({"schedule_value": "   "}, "schedule_value: must not be blank"),
    ({"schedule_value": 5}, "schedule_value: must be a string"),
    ({"schedule_value": None}, "schedule_value: must be a string"),
    ({"schedule_value": "* * * *"}, f"{FIVE}4"),
    ({"schedule_value": "* * * * * *"}, f"{FIVE}6"),
    ({"schedule_value": "0 0 9 * * MON"}, f"{FIVE}6"),
    ({"schedule_value": "every day at 9"}, f"{FIVE}4"),
    ({"schedule_value": "tomorrow"}, f"{FIVE}1"),
    ({"schedule_value": "60 * * * *"}, f"schedule_value: '60' is not a cron minute; it takes 0-59{TAKES}"),
    ({"schedule_value": "-1 * * * *"}, f"schedule_value: '-1' is not a cron minute; it takes 0-59{TAKES}"),
    ({"schedule_value": "* 24 * * *"}, f"schedule_value: '24' is not a cron hour; it takes 0-23{TAKES}"),
    (
        {"schedule_value": "* * 0 * *"},
        f"schedule_value: '0' is not a cron day-of-month; it takes 1-31{TAKES}",
    ),
    (
        {"schedule_value": "* * 32 * *"},
        f"schedule_value: '32' is not a cron day-of-month; it takes 1-31{TAKES}",
    ),
    (
        {"schedule_value": "* * * 13 *"},
        f"schedule_value: '13' is not a cron month; it takes 1-12 or JAN-DEC{TAKES}",
    ),
    (
        {"schedule_value": "* * * 0 *"},
        f"schedule_value: '0' is not a cron month; it takes 1-12 or JAN-DEC{TAKES}",
    ),
    ({"schedule_value": "* * * * 8"}, f"schedule_value: '8' is not a cron day-of-week; it takes {WEEKDAYS}"),
    (
        {"schedule_value": "* * * FOO *"},
        f"schedule_value: 'FOO' is not a cron month; it takes 1-12 or JAN-DEC{TAKES}",
    ),
    (
        {"schedule_value": "* * * * MONDAY"},
        f"schedule_value: 'MONDAY' is not a cron day-of-week; it takes {WEEKDAYS}",
    ),
    (
        {"schedule_value": "* * * * FRI-MON"},
        f"schedule_value: 'FRI-MON' is not a cron day-of-week; it takes {WEEKDAYS}",
    ),
    ({"schedule_value": "9-5 * * * *"}, f"schedule_value: '9-5' is not a cron minute; it takes 0-59{TAKES}"),
    ({"schedule_value": "*/0 * * * *"}, f"schedule_value: '*/0' is not a cron minute; it takes 0-59{TAKES}"),
    (
        {"schedule_value": "*/90 * * * *"},
        f"schedule_value: a step of 90 is too long for a cron minute (at most 59){LONGER}",
    ),
    (
        {"schedule_value": "0 */48 * * *"},
        f"schedule_value: a step of 48 is too long for a cron hour (at most 23){LONGER}",
    ),
    (
        {"schedule_value": "1,,2 * * * *"},
        f"schedule_value: '1,,2' is not a cron minute; it takes 0-59{TAKES}",
    ),
    ({"schedule_value": "1.5 * * * *"}, f"schedule_value: '1.5' is not a cron minute; it takes 0-59{TAKES}"),
    (
        {"schedule_value": "* * ? * *"},
        f"schedule_value: '?' is not a cron day-of-month; it takes 1-31{TAKES}",
    ),
    ({"schedule_value": "٣ * * * *"}, f"schedule_value: '٣' is not a cron minute; it takes 0-59{TAKES}"),
    (
        {"schedule_value": "0 9 * * *\n"},
        f"schedule_value: '*\\n' is not a cron day-of-week; it takes {WEEKDAYS}",
    ),
    ({"schedule_value": "0 0 30 2 *"}, "schedule_value: '0 0 30 2 *' names a day that never comes"),
    ({"schedule_value": "0 0 31 4,6 *"}, "schedule_value: '0 0 31 4,6 *' names a day that never comes"),
    (
        {"schedule_value": "0 0 */30 2 MON#2"},
        "schedule_value: '0 0 */30 2 MON#2' names a day that never comes",
    ),
    (
        {"schedule_value": "@reboot"},
        "schedule_value: @reboot is no time: a task has no start of the machine to wait for",
    ),
    (
        {"schedule_value": "@every 5m"},
        "schedule_value: @every is no name of cron; use schedule_type interval, in milliseconds",
    ),
    (
        {"schedule_value": "@"},
        "schedule_value: '@' is unknown; use one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, "
        "@annually",
    ),
    ({"schedule_value": "0 9 * * *; rm -rf /"}, f"{FIVE}8"),
    ({"schedule_value": "1," * 100 + "1 * * * *"}, "schedule_value: must have at most 200 characters"),
    ({"schedule_type": "interval", "schedule_value": "60000abc"}, f"schedule_value: '60000abc'{NO_INTERVAL}"),
    ({"schedule_type": "interval", "schedule_value": "1e3"}, f"schedule_value: '1e3'{NO_INTERVAL}"),
    ({"schedule_type": "interval", "schedule_value": "-5"}, f"schedule_value: '-5'{NO_INTERVAL}"),
    (
        {"schedule_type": "interval", "schedule_value": "0"},
        "schedule_value: an interval is at least 1000 milliseconds",
    ),
    (
        {"schedule_type": "interval", "schedule_value": "999"},
        "schedule_value: an interval is at least 1000 milliseconds",
    ),
    ({"schedule_type": "interval", "schedule_value": "1000.0"}, f"schedule_value: '1000.0'{NO_INTERVAL}"),
    ({"schedule_type": "interval", "schedule_value": "+1000"}, f"schedule_value: '+1000'{NO_INTERVAL}"),
    ({"schedule_type": "interval", "schedule_value": " 1000"}, f"schedule_value: ' 1000'{NO_INTERVAL}"),
    ({"schedule_type": "interval", "schedule_value": "0x3E8"}, f"schedule_value: '0x3E8'{NO_INTERVAL}"),
    ({"schedule_type": "interval", "schedule_value": "1_000"}, f"schedule_value: '1_000'{NO_INTERVAL}"),
    ({"schedule_type": "interval", "schedule_value": "١٠٠٠"}, f"schedule_value: '١٠٠٠'{NO_INTERVAL}"),
    ({"schedule_type": "interval", "schedule_value": "5m"}, f"schedule_value: '5m'{NO_INTERVAL}"),
    (
        {"schedule_type": "interval", "schedule_value": "999999999999999999999999999999"},
        "schedule_value: an interval is at most 3153600000000 milliseconds",
    ),
    ({"schedule_type": "interval", "schedule_value": 60000}, "schedule_value: must be a string"),
    (
        {"schedule_type": "interval", "schedule_value": "0 9 * * *"},
        f"schedule_value: '0 9 * * *'{NO_INTERVAL}",
    ),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01T09:00:00Z"},
        f"schedule_value: '2027-03-01T09:00:00Z'{ZONED}",
    ),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01T09:00:00+08:00"},
        f"schedule_value: '2027-03-01T09:00:00+08:00'{ZONED}",
    ),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01T09:00:00+0800"},
        f"schedule_value: '2027-03-01T09:00:00+0800'{ZONED}",
    ),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01T09:00-05"},
        f"schedule_value: '2027-03-01T09:00-05'{ZONED}",
    ),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01 09:00 GMT+8"},
        f"schedule_value: '2027-03-01 09:00 GMT+8'{ZONED}",
    ),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01T09:00:00[Europe/Berlin]"},
        f"schedule_value: '2027-03-01T09:00:00[Europe/Berlin]'{ZONED}",
    ),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01T09:00 CET"},
        f"schedule_value: '2027-03-01T09:00 CET'{ZONED}",
    ),
    ({"schedule_type": "once", "schedule_value": "2027-02-29"}, f"schedule_value: '2027-02-29'{NO_DATE}"),
    ({"schedule_type": "once", "schedule_value": "2027-13-01"}, f"schedule_value: '2027-13-01'{NO_DATE}"),
    (
        {"schedule_type": "once", "schedule_value": "2027-04-31T00:00"},
        f"schedule_value: '2027-04-31T00:00'{NO_DATE}",
    ),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01T24:00"},
        f"schedule_value: '2027-03-01T24:00'{NO_DATE}",
    ),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01T09:60"},
        f"schedule_value: '2027-03-01T09:60'{NO_DATE}",
    ),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01T09:00:60"},
        f"schedule_value: '2027-03-01T09:00:60'{NO_DATE}",
    ),
    ({"schedule_type": "once", "schedule_value": "2027-3-1"}, f"schedule_value: '2027-3-1'{NO_TIME}"),
    ({"schedule_type": "once", "schedule_value": "20270301"}, f"schedule_value: '20270301'{NO_TIME}"),
    ({"schedule_type": "once", "schedule_value": "2027-W09-1"}, f"schedule_value: '2027-W09-1'{NO_TIME}"),
    ({"schedule_type": "once", "schedule_value": "01.03.2027"}, f"schedule_value: '01.03.2027'{NO_TIME}"),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01T9:00"},
        f"schedule_value: '2027-03-01T9:00'{NO_TIME}",
    ),
    ({"schedule_type": "once", "schedule_value": "in 5 minutes"}, f"schedule_value: 'in 5 minutes'{NO_TIME}"),
    (
        {"schedule_type": "once", "schedule_value": "1772323200000"},
        f"schedule_value: '1772323200000'{NO_TIME}",
    ),
    (
        {"schedule_type": "once", "schedule_value": "0001-01-01"},
        "schedule_value: the year must be between 1000 and 9998",
    ),
    (
        {"schedule_type": "once", "schedule_value": "9999-12-31T23:59"},
        "schedule_value: the year must be between 1000 and 9998",
    ),
    (
        {"schedule_type": "once", "schedule_value": "2027-03-01T09:00:00.1234"},
        f"schedule_value: '2027-03-01T09:00:00.1234'{NO_TIME}",
    ),
    ({"schedule_type": "once", "schedule_value": "٢٠٢٧-03-01"}, f"schedule_value: '٢٠٢٧-03-01'{NO_TIME}"),
    ({"timezone": ""}, f"timezone: ''{NO_ZONE}"),
    ({"timezone": "CEST"}, f"timezone: 'CEST'{NO_ZONE}"),
    ({"timezone": "Berlin"}, "timezone: 'Berlin' is not an IANA time zone; did you mean Europe/Berlin?"),
    (
        {"timezone": "europe/berlin"},
        "timezone: 'europe/berlin' is not an IANA time zone; did you mean Europe/Berlin?",
    ),
    (
        {"timezone": "Europe/Berln"},
        "timezone: 'Europe/Berln' is not an IANA time zone; did you mean Europe/Berlin?",
    ),
    ({"timezone": "Europe"}, f"timezone: 'Europe'{NO_ZONE}"),
    ({"timezone": "UTC+2"}, f"timezone: 'UTC+2'{NO_ZONE}"),
    ({"timezone": "+02:00"}, f"timezone: '+02:00'{NO_ZONE}"),
    ({"timezone": "GMT+8"}, f"timezone: 'GMT+8'{NO_ZONE}"),
    ({"timezone": "localtime"}, f"timezone: 'localtime'{NO_ZONE}"),
    ({"timezone": "posix/UTC"}, f"timezone: 'posix/UTC'{NO_ZONE}"),
    (
        {"timezone": "right/Europe/Berlin"},
        "timezone: 'right/Europe/Berlin' is not an IANA time zone; did you mean Europe/Berlin?",
    ),
    ({"timezone": "../../etc/passwd"}, f"timezone: '../../etc/passwd'{NO_ZONE}"),
    ({"timezone": "/etc/localtime"}, f"timezone: '/etc/localtime'{NO_ZONE}"),
    (
        {"timezone": "Europe/Berlin "},
        "timezone: 'Europe/Berlin ' is not an IANA time zone; did you mean Europe/Berlin?",
    ),
    (
        {"timezone": "Europe/Berlin\x00"},
        "timezone: 'Europe/Berlin\\x00' is not an IANA time zone; did you mean Europe/Berlin?",
    ),
    ({"timezone": 1}, "timezone: must be a string"),
    ({"timezone": "x" * 5000}, f"timezone: '{'x' * 61}...'{NO_ZONE}"),
    ({"prompt": ""}, "prompt: must not be blank"),
    ({"prompt": " \n\t "}, "prompt: must not be blank"),
    ({"prompt": "x" * 32001}, "prompt: must have at most 32000 characters, has 32001"),
    ({"prompt": None}, "prompt: must be a string"),
    ({"prompt": ["hi"]}, "prompt: must be a string"),
    ({"context_mode": "shared"}, "context_mode: must be one of group, isolated"),
    ({"context_mode": ""}, "context_mode: must be one of group, isolated"),
    ({"context_mode": "GROUP"}, "context_mode: must be one of group, isolated"),
    ({"context_mode": None}, "context_mode: must be one of group, isolated"),
    ({"context_mode": ["group"]}, "context_mode: must be one of group, isolated"),
    (
        {"context_mode": "group", "conversation_id": None},
        "conversation_id: context_mode group needs an existing conversation",
    ),
    ({"catch_up": "never"}, "catch_up: must be one of skip, once, all"),
    ({"catch_up": True}, "catch_up: must be one of skip, once, all"),
    ({"catch_up": "ALL"}, "catch_up: must be one of skip, once, all"),
    ({"id": ""}, f"{BAD_ID}"),
    ({"id": "a b"}, f"{BAD_ID}"),
    ({"id": "../x"}, f"{BAD_ID}"),
    ({"id": ".."}, f"{BAD_ID}"),
    ({"id": "x" * 129}, f"{BAD_ID}"),
    ({"id": "tâche"}, f"{BAD_ID}"),
    ({"id": 7}, "id: must be a string"),
]


def refused_fields(*, without: frozenset[str] = frozenset()) -> list[Any]:
    return [
        pytest.param(wrong, sentence, id=re.sub(r"[^ -~]", "?", f"{list(wrong.items())}"[:70]))
        for wrong, sentence in REFUSED
        if not without & wrong.keys()
    ]


def test_the_table_of_refusals_is_long_enough_to_mean_something() -> None:
    assert len(REFUSED) >= 60


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    """One store for all: what is refused changes nothing, so nobody is in another's way."""
    opened = SqliteStore(tmp_path_factory.mktemp("refusals") / "store.db")
    anyio.run(opened.conversations.create, HOME, NOW)
    yield opened
    anyio.run(opened.close)


@pytest.fixture
def service(store: SqliteStore) -> TaskService:
    return TaskService(store, default_timezone="UTC")


@pytest.mark.parametrize(("wrong", "sentence"), refused_fields())
async def test_a_wrong_field_is_refused_and_nothing_is_made(
    store: SqliteStore, service: TaskService, wrong: dict[str, Any], sentence: str
) -> None:
    before = await store.counts()

    with pytest.raises(InvalidInput) as refused:
        await service.schedule(**{**GOOD, **wrong})

    assert refused.value.message == sentence
    assert refused.value.message.isprintable()
    assert await store.counts() == before
    assert len((await store.conversations.page(limit=10, cursor=None, include_temporary=True)).items) == 1


async def an_existing_task(service: TaskService) -> Task:
    try:
        return await service.get("task-edited", EVERYTHING)
    except NotFound:
        return await service.schedule(**{**GOOD, "id": "task-edited"})


@pytest.mark.parametrize(("wrong", "sentence"), refused_fields(without=frozenset({"id", "conversation_id"})))
async def test_an_edit_with_a_wrong_field_is_refused_and_changes_nothing(
    service: TaskService, wrong: dict[str, Any], sentence: str
) -> None:
    before = await an_existing_task(service)

    with pytest.raises(InvalidInput) as refused:
        await service.update(before.id, EVERYTHING, wrong, now=NOW + 5)

    assert refused.value.message == sentence
    assert await service.get(before.id, EVERYTHING) == before


@pytest.mark.parametrize("name", ["id", "conversation_id", "next_run", "attempts", "nonsense"])
async def test_a_field_that_cannot_be_changed_is_named(service: TaskService, name: str) -> None:
    task = await an_existing_task(service)

    with pytest.raises(InvalidInput, match=rf"^{name}: cannot be changed"):
        await service.update(task.id, EVERYTHING, {name: "x"})


@settings(max_examples=examples(400))
@given(
    kind=st.sampled_from(["cron", "interval", "once"]),
    value=st.one_of(
        st.text(max_size=40),
        st.text(alphabet=string.digits + "*,-/LW#? ?@TZ:+monWED", max_size=30),
        st.lists(
            st.text(alphabet=string.digits + "*,-/L#", min_size=1, max_size=5), min_size=5, max_size=5
        ).map(" ".join),
    ),
    zone=st.sampled_from(["Europe/Berlin", "UTC"]),
)
def test_any_text_is_either_a_schedule_with_a_slot_or_a_sentence(kind: str, value: str, zone: str) -> None:
    slot, sentence = first_or_sentence(kind, value, zone)

    assert (slot is None) == sentence.startswith("schedule_value: ")


@settings(max_examples=examples(200))
@given(zone=st.text(max_size=40))
def test_any_text_is_either_a_zone_or_a_sentence(zone: str) -> None:
    slot, sentence = first_or_sentence("interval", "1000", zone)

    assert (slot is None) == sentence.startswith("timezone: ")


@pytest.mark.parametrize(("length", "shown"), [(64, "x" * 64), (65, "x" * 61 + "...")])
def test_a_refused_value_is_shown_whole_up_to_its_bound(length: int, shown: str) -> None:
    assert first_or_sentence("once", "x" * length, "UTC")[1].startswith(f"schedule_value: '{shown}' is")


@pytest.mark.parametrize(
    ("kind", "value"), [("once", "1000-01-01T00:00"), ("cron", "0," * 95 + "00 9 * * *")]
)
def test_the_bounds_of_a_schedule_are_part_of_what_it_may_be(kind: str, value: str) -> None:
    assert parse(kind, value, "UTC").value == value


def first_or_sentence(kind: str, value: str, zone: str) -> tuple[int | None, str]:
    try:
        return first_slot(parse(kind, value, zone), NOW), ""
    except InvalidInput as refused:
        return None, refused.message


async def test_a_past_time_is_refused_where_nobody_wished_it(service: TaskService) -> None:
    with pytest.raises(InvalidInput, match="now it is"):
        await service.schedule(**{**GOOD, "schedule_type": "once", "schedule_value": "2020-01-01"})
