"""Slots against a second opinion, over clock changes, leap days and month ends."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.clock import at, ms_of
from shared.schedules import instant, parse, slot_after, upcoming
from tests.examples import examples
from tests.tasks import almanac

ZONES = ("Europe/Berlin", "America/New_York", "Asia/Shanghai", "Australia/Lord_Howe")
DAY = timedelta(days=1)
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")

# Days on whose evening a clock change, a leap day, a month's or a year's end is near.
TURNS = (
    (2026, 3, 28),
    (2026, 10, 24),
    (2027, 3, 27),
    (2027, 10, 30),
    (2026, 3, 7),
    (2026, 10, 31),
    (2027, 3, 13),
    (2027, 11, 6),
    (2026, 4, 4),
    (2026, 10, 3),
    (2027, 4, 3),
    (2027, 10, 2),
    (2028, 2, 28),
    (2027, 2, 28),
    (2026, 4, 29),
    (2026, 12, 30),
)


@dataclass(frozen=True)
class Cron:
    """A cron expression, kept as sets beside its text so that nobody has to parse it for the check."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int] | None
    months: frozenset[int] | None
    weekdays: frozenset[int] | None

    def names(self, wall: datetime) -> bool:
        if wall.minute not in self.minutes or wall.hour not in self.hours:
            return False
        if self.months is not None and wall.month not in self.months:
            return False
        by_day = self.days is None or wall.day in self.days
        by_weekday = self.weekdays is None or wall.isoweekday() % 7 in self.weekdays
        # crontab(5): with both given, either is enough.
        if self.days is not None and self.weekdays is not None:
            return by_day or by_weekday
        return by_day and by_weekday


def _listed(numbers: frozenset[int] | None, names: tuple[str, ...] = (), first: int = 0) -> str:
    if numbers is None:
        return "*"
    return ",".join(names[number - first] if names else str(number) for number in sorted(numbers))


@st.composite
def crons(draw: st.DrawFn) -> Cron:
    step = draw(st.sampled_from([1, 5, 15, 20, 30]))
    minutes = draw(
        st.one_of(
            st.just((f"*/{step}", frozenset(range(0, 60, step)))),
            st.frozensets(st.integers(0, 59), min_size=1, max_size=4).map(lambda some: (_listed(some), some)),
        )
    )
    hours = draw(
        st.one_of(
            st.just(("*", frozenset(range(24)))),
            st.integers(0, 20).map(lambda hour: (f"{hour}-{hour + 3}", frozenset(range(hour, hour + 4)))),
            st.frozensets(st.integers(0, 3), min_size=1, max_size=3).map(lambda some: (_listed(some), some)),
        )
    )
    days = draw(st.none() | st.frozensets(st.integers(1, 31), min_size=1, max_size=8))
    months = draw(st.none() | st.frozensets(st.integers(1, 12), min_size=6, max_size=9))
    weekdays = draw(st.none() | st.frozensets(st.integers(0, 6), min_size=1, max_size=3))
    parts = (
        minutes[0],
        hours[0],
        _listed(days),
        _listed(months, MONTHS, 1),
        _listed(weekdays, WEEKDAYS),
    )
    return Cron(" ".join(parts), minutes[1], hours[1], days, months, weekdays)


def slots_between(text: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    schedule = parse("cron", text, zone)
    found, slot = [], slot_after(schedule, ms_of(start), ms_of(start))
    while slot is not None and slot < ms_of(end):
        found.append(at(slot))
        slot = slot_after(schedule, slot, slot)
    return found


@settings(max_examples=examples(150))
@given(
    cron=crons(), zone=st.sampled_from(ZONES), turn=st.sampled_from(TURNS), minute=st.integers(0, 3 * 1440)
)
def test_every_slot_near_a_turn_of_the_clock_or_calendar_is_where_the_almanac_has_it(
    cron: Cron, zone: str, turn: tuple[int, int, int], minute: int
) -> None:
    start = datetime(*turn, tzinfo=UTC) - DAY + timedelta(minutes=minute)
    end = start + 3 * DAY

    expected = almanac.slots(cron.names, start, end, ZoneInfo(zone))

    assert slots_between(cron.text, zone, start, end) == expected


@settings(max_examples=examples(60))
@given(
    zone=st.sampled_from(ZONES),
    turn=st.sampled_from(TURNS),
    minute=st.integers(0, 3 * 1440),
    second=st.integers(0, 59_999),
)
def test_a_once_time_comes_at_the_minute_the_almanac_has_it(
    zone: str, turn: tuple[int, int, int], minute: int, second: int
) -> None:
    start = datetime(*turn, tzinfo=UTC) - DAY
    wall = datetime(*turn) - DAY / 2 + timedelta(minutes=minute % 1440)
    expected = [
        moment
        for moment, fresh in almanac.minutes(start - DAY, start + 4 * DAY, ZoneInfo(zone))
        if wall in fresh
    ]

    (slot,) = upcoming(parse("once", wall.isoformat(), zone), ms_of(start) + second, 5)

    assert [at(slot)] == expected


@settings(max_examples=examples(200))
@given(
    step=st.integers(1000, 10**9),
    slot=st.integers(0, 2**41),
    late=st.integers(0, 10**10),
)
def test_an_interval_keeps_its_beat_and_comes_after_the_present(step: int, slot: int, late: int) -> None:
    following = slot_after(parse("interval", str(step), "UTC"), slot, slot + late)

    assert following is not None
    assert (following - slot) % step == 0
    assert 0 < following - (slot + late) <= step


@settings(max_examples=examples(150))
@given(cron=crons(), zone=st.sampled_from(ZONES), now=st.integers(1_600_000_000_000, 2_500_000_000_000))
def test_slots_only_ever_move_forward(cron: Cron, zone: str, now: int) -> None:
    slots = upcoming(parse("cron", cron.text, zone), now, 5)

    assert [now, *slots] == sorted({now, *slots})


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "text", "start", "expected"),
    [
        # In a gap: at its end, whatever the minute.
        ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00", "2026-03-29T01:00"),
        ("Europe/Berlin", "5 2 * * *", "2026-03-28T12:00", "2026-03-29T01:00"),
        ("America/New_York", "30 2 * * *", "2026-03-07T12:00", "2026-03-08T07:00"),
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00", "2026-10-03T15:30"),
        # In a fold: the first time.
        ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00", "2026-10-25T00:30"),
        ("America/New_York", "30 1 * * *", "2026-10-31T12:00", "2026-11-01T05:30"),
        ("Australia/Lord_Howe", "45 1 * * *", "2026-04-04T12:00", "2026-04-04T14:45"),
        # No clock changes here any more.
        ("Asia/Shanghai", "30 2 * * *", "2026-03-28T12:00", "2026-03-28T18:30"),
        # Leap days and month ends.
        ("UTC", "0 0 29 2 *", "2026-03-01T00:00", "2028-02-29T00:00"),
        ("UTC", "0 0 31 * *", "2026-04-01T00:00", "2026-05-31T00:00"),
        ("UTC", "0 12 L 2 *", "2027-01-01T00:00", "2027-02-28T12:00"),
        ("UTC", "@yearly", "2026-01-01T00:00", "2027-01-01T00:00"),
        ("UTC", "@Weekly", "2026-11-22T00:00", "2026-11-29T00:00"),
        ("UTC", "0 9 * * mon-fri", "2026-11-20T09:00", "2026-11-23T09:00"),
        ("UTC", "\t0  9 * JAN,jul 7 ", "2026-11-20T09:00", "2027-01-03T09:00"),
    ],
)
def test_the_next_slot_is_the_one_on_the_wall(zone: str, text: str, start: str, expected: str) -> None:
    assert upcoming(parse("cron", text, zone), ms_of(utc(start)), 1) == [ms_of(utc(expected))]


def test_a_slot_in_a_fold_runs_once() -> None:
    slots = slots_between("30 2 * * *", "Europe/Berlin", utc("2026-10-24T22:00"), utc("2026-10-25T22:00"))

    assert slots == [utc("2026-10-25T00:30")]


def test_all_slots_of_a_gap_are_one_at_its_end() -> None:
    slots = slots_between("*/15 2-3 * * *", "Europe/Berlin", utc("2026-03-28T23:00"), utc("2026-03-29T01:20"))

    assert slots == [utc("2026-03-29T01:00"), utc("2026-03-29T01:15")]


@pytest.mark.parametrize(
    ("value", "zone", "expected"),
    [
        ("2027-03-01T09:00:00", "Asia/Shanghai", "2027-03-01T01:00"),
        ("2027-03-01T09:00", "Europe/Berlin", "2027-03-01T08:00"),
        ("2027-03-01 09:00:30.5", "UTC", "2027-03-01T09:00:30.500"),
        ("2027-07-01", "America/New_York", "2027-07-01T04:00"),
        ("1999-12-31T23:59:59", "UTC", "1999-12-31T23:59:59"),
    ],
)
def test_once_is_a_local_time_past_or_not(value: str, zone: str, expected: str) -> None:
    assert upcoming(parse("once", value, zone), ms_of(utc("2026-11-22T00:00")), 5) == [ms_of(utc(expected))]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("@midnight", "0 0 * * *"),
        ("@annually", "0 0 1 1 *"),
        ("@ANNUALLY", "0 0 1 1 *"),
        ("@yearly", "0 0 1 1 *"),
    ],
)
def test_the_names_of_crontab_are_known(name: str, fields: str) -> None:
    start = ms_of(utc("2026-11-22T00:00"))

    assert upcoming(parse("cron", name, "UTC"), start, 3) == upcoming(parse("cron", fields, "UTC"), start, 3)


def test_a_date_alone_is_its_last_moment() -> None:
    assert instant("2027-03-01", "Asia/Shanghai") == ms_of(utc("2027-03-01T16:00")) - 1
