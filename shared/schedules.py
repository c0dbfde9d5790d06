"""When a task is due: cron, interval and once, in an IANA time zone.

A slot is an instant in milliseconds since the epoch (UTC). Cron and once name wall-clock times: one that a
change to summer time leaves out (a gap) comes at the gap's end, one that a change back repeats (a fold)
comes once, the first time. Several wall-clock times that fall on one gap's end are one slot. Use an interval
to measure elapsed time.
"""

import difflib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import floor
from typing import Final, cast, get_args
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from shared.clock import DAY_MS, at, ms_of, zone_names
from shared.errors import InvalidInput
from shared.task_values import CatchUp, ScheduleType

SHORTEST_INTERVAL_MS: Final = 1000
LONGEST_INTERVAL_MS: Final = 100 * 365 * DAY_MS
LONGEST_VALUE: Final = 200
"""Characters of a schedule_value."""

MACROS: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
"""The names of crontab(5)."""

NO_MACROS: Final = {
    "@reboot": "is no time: a task has no start of the machine to wait for",
    "@every": "is no name of cron; use schedule_type interval, in milliseconds",
}
"""Names by which people mean something that cron's fields can't say, and what to tell them."""

CRON_FIELDS: Final = {
    "minute": (59, "0-59"),
    "hour": (23, "0-23"),
    "day-of-month": (31, "1-31"),
    "month": (12, "1-12 or JAN-DEC"),
    "day-of-week": (7, "0-7 or SUN-SAT, a range from low to high"),
}
"""The five fields in order: the largest step that still means something, and what the field takes."""

ONCE: Final = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:\.(\d{1,3}))?)?)?", re.ASCII
)
YEARS: Final = range(1000, 9999)
"""Of a time: its neighbours in every other zone are in the calendar too, with four digits."""
ONCE_EXAMPLE: Final = "a local time such as 2027-03-01T09:00:00, or a date"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule that was checked by ``parse``."""

    type: ScheduleType
    value: str
    timezone: str


@lru_cache(maxsize=4096)
def parse(schedule_type: str, schedule_value: str, timezone: str) -> Schedule:
    """Check a schedule; raises InvalidInput whose sentence starts with the field's name."""
    if schedule_type not in get_args(ScheduleType):
        raise InvalidInput("schedule_type: must be cron, interval or once")
    zone(timezone)
    schedule = Schedule(cast(ScheduleType, schedule_type), schedule_value, timezone)
    if not schedule_value.strip():
        raise InvalidInput("schedule_value: must not be blank")
    if len(schedule_value) > LONGEST_VALUE:
        raise InvalidInput(f"schedule_value: must have at most {LONGEST_VALUE} characters")
    if schedule.type == "cron":
        _check_cron(schedule)
    elif schedule.type == "interval":
        _interval_ms(schedule_value)
    else:
        _once_local(schedule_value)
    return schedule


@lru_cache(maxsize=1024)
def zone(timezone: str) -> ZoneInfo:
    """Return an IANA time zone; raises InvalidInput."""
    if timezone in zone_names():
        return ZoneInfo(timezone)
    near = _nearest_zone(timezone[:64].strip().casefold())
    hint = f"did you mean {near}?" if near else "use one such as Europe/Berlin or UTC"
    raise InvalidInput(f"timezone: {_shown(timezone)} is not an IANA time zone; {hint}")


def instant(text: str, timezone: str) -> int | None:
    """Return when a local time of the zone comes (a date alone: its last moment), or a time with its offset.

    None for what is neither.
    """
    try:
        if len(text) == len("2027-03-01"):
            return _instant(_once_local(text) + timedelta(days=1), zone(timezone)) - 1
        if ONCE.fullmatch(text):
            return _instant(_once_local(text), zone(timezone))
        moment = datetime.fromisoformat(text)
    except (InvalidInput, ValueError, OverflowError):
        return None
    return ms_of(moment) if moment.tzinfo is not None and moment.year in YEARS else None


def first_slot(schedule: Schedule, now: int) -> int | None:
    """Return the first slot of a schedule that starts now; for ``once`` its time, past or not."""
    if schedule.type == "once":
        return _instant(_once_local(schedule.value), zone(schedule.timezone))
    return slot_after(schedule, now, now)


def slot_after(schedule: Schedule, slot: int, after: int) -> int | None:
    """Return the first slot later than ``after``, which is ``slot`` or later; None when there is none.

    ``slot`` is one of the schedule's slots (or its start), from which intervals are counted on: no drift.
    """
    if schedule.type == "once":
        return None
    if schedule.type == "interval":
        step = _interval_ms(schedule.value)
        return slot + (max(after - slot, 0) // step + 1) * step
    return _cron_after(schedule, after)


def upcoming(schedule: Schedule, now: int, count: int) -> list[int]:
    """Return the next ``count`` slots of a schedule that starts now (fewer when it has fewer)."""
    slots: list[int] = []
    slot = first_slot(schedule, now)
    while slot is not None and len(slots) < count:
        slots.append(slot)
        slot = slot_after(schedule, slot, slot)
    return slots


def _cron_after(schedule: Schedule, after: int) -> int | None:
    """Walk wall-clock times as if there were no time zones, then say at which instant each one comes."""
    place = zone(schedule.timezone)
    start = at(after).astimezone(place).replace(tzinfo=None)
    # Wall-clock times up to the present one come at instants up to the present one, so none is missed;
    # inside a fold's second pass the next few have come already.
    for local in CronSim(_cron_text(schedule.value), start):
        slot = _instant(local, place)
        if slot > after:
            return slot
    return None


def _instant(local: datetime, place: ZoneInfo) -> int:
    """Return when a wall-clock time comes: at the gap's end in a gap, the first time in a fold (PEP 495)."""
    before = local.replace(tzinfo=place, fold=0)
    after = local.replace(tzinfo=place, fold=1)
    if _offset(before) >= _offset(after):
        return ms_of(before)
    return _gap_end(floor(after.timestamp()), floor(before.timestamp()), place) * 1000


def _gap_end(early: int, late: int, place: ZoneInfo) -> int:
    """Return the second of the transition in (early, late], both in seconds since the epoch."""
    old = _offset(datetime.fromtimestamp(early, place))
    while late - early > 1:
        middle = (early + late) // 2
        if _offset(datetime.fromtimestamp(middle, place)) == old:
            early = middle
        else:
            late = middle
    return late


def _offset(moment: datetime) -> timedelta:
    return moment.utcoffset() or timedelta()


def _check_cron(schedule: Schedule) -> None:
    text = _cron_text(schedule.value)
    for part, (name, (largest, allowed)) in zip(text.split(" "), CRON_FIELDS.items(), strict=True):
        _check_step(part, name, largest)
        _check_field(part, name, allowed)
    try:
        possible = next(CronSim(text, datetime(2000, 1, 1, tzinfo=UTC)), None)
    except CronSimError:
        possible = None
    if possible is None:
        raise InvalidInput(f"schedule_value: {_shown(schedule.value)} names a day that never comes")


def _cron_text(value: str) -> str:
    """Return five fields; raises InvalidInput."""
    text = value.strip(" \t")
    if text.startswith("@"):
        macro = MACROS.get(text.lower())
        name = re.split(r"[ \t]", text.lower(), maxsplit=1)[0]
        if name in NO_MACROS:
            raise InvalidInput(f"schedule_value: {name} {NO_MACROS[name]}")
        if macro is None:
            raise InvalidInput(f"schedule_value: {_shown(text)} is unknown; use one of {', '.join(MACROS)}")
        return macro
    fields = re.split(r"[ \t]+", text)
    if len(fields) != len(CRON_FIELDS):
        raise InvalidInput(
            f"schedule_value: cron takes 5 fields ({' '.join(CRON_FIELDS)}), got {len(fields)}"
        )
    return " ".join(fields)


def _check_field(part: str, name: str, allowed: str) -> None:
    """Let the library read one field beside four stars, so that its error is about this one."""
    fields = [part if field == name else "*" for field in CRON_FIELDS]
    try:
        CronSim(" ".join(fields), datetime(2000, 1, 1, tzinfo=UTC))
        # The library splits at any white space, a line's end included.
        readable = part.isprintable()
    except (CronSimError, AssertionError):
        readable = False
    if not readable:
        raise InvalidInput(
            f"schedule_value: {_shown(part)} is not a cron {name}; it takes {allowed}, *, lists and /steps"
        )


def _check_step(part: str, name: str, largest: int) -> None:
    """Refuse a step that never comes round: ``*/90`` would quietly mean every hour."""
    for step in re.findall(r"/([0-9]+)", part):
        if int(step[:9]) > largest:
            raise InvalidInput(
                f"schedule_value: a step of {step[:9]} is too long for a cron {name} (at most {largest}); "
                "use schedule_type interval for longer ones"
            )


def _interval_ms(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise InvalidInput(
            f"schedule_value: {_shown(value)} is not an interval; "
            "it takes whole milliseconds in digits, such as 60000"
        )
    step = int(value)
    if step < SHORTEST_INTERVAL_MS:
        raise InvalidInput(f"schedule_value: an interval is at least {SHORTEST_INTERVAL_MS} milliseconds")
    if step > LONGEST_INTERVAL_MS:
        raise InvalidInput(f"schedule_value: an interval is at most {LONGEST_INTERVAL_MS} milliseconds")
    return step


def _once_local(value: str) -> datetime:
    match = ONCE.fullmatch(value)
    if match is None:
        raise InvalidInput(_once_sentence(value))
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    micros = int((match[7] or "0").ljust(6, "0"))
    try:
        local = datetime(year, month, day, hour, minute, second, micros)
    except ValueError as error:
        raise InvalidInput(
            f"schedule_value: {_shown(value)} is not in the calendar or on the clock"
        ) from error
    if year not in YEARS:
        raise InvalidInput("schedule_value: the year must be between 1000 and 9998")
    return local


def _once_sentence(value: str) -> str:
    if re.match(r"\d{4}-\d{2}-\d{2}.*(?:[Zz]|[+-]\d{2}:?\d{2}|[A-Za-z]{2,}\S*|[+-]\d{1,2})\s*$", value):
        return (
            f"schedule_value: {_shown(value)} carries a zone; give {ONCE_EXAMPLE}, and the zone in timezone"
        )
    return f"schedule_value: {_shown(value)} is not a time; once takes {ONCE_EXAMPLE}"


def _nearest_zone(text: str) -> str | None:
    """Return the place someone may have meant; never an offset, an abbreviation, or Etc's turned signs."""
    names = [name for name in sorted(zone_names()) if "/" in name and not name.startswith("Etc/")]
    places = {name.casefold(): name for name in names}
    cities = {name.rpartition("/")[2]: places[name] for name in places}
    if text in cities:
        return cities[text]
    near = difflib.get_close_matches(text, places, n=1, cutoff=0.8)
    return places[near[0]] if near else None


def _shown(text: str) -> str:
    """Return a caller's text for a sentence: quoted, without control characters, not long."""
    return repr(text if len(text) <= 64 else f"{text[:61]}...")


ON_TIME_MS: Final = 120_000
"""How late a slot may be and still be on time: twice the minute in which outside schedulers tick. Then it is
overdue."""

MOST_CAUGHT_UP: Final = 100
"""How many missed slots ``all`` runs before it goes on with the future."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the slot runs, which slot comes next, and how many missed ones ran in a row so far."""

    run: bool
    next_slot: int | None
    caught_up: int


def decide(schedule: Schedule, policy: CatchUp, slot: int, now: int, caught_up: int) -> Decision:
    """Decide about a slot that is due.

    A slot counts as missed when the one after it has come as well, or when it is later than ON_TIME_MS. A
    ``once`` task has no later slot to skip to, so it always runs.
    """
    following = slot_after(schedule, slot, slot)
    overtaken = following is not None and following <= now
    if policy == "skip" and following is not None and (overtaken or now - slot > ON_TIME_MS):
        return Decision(False, slot_after(schedule, slot, now), 0)
    if not overtaken:
        return Decision(True, following, 0)
    if policy == "all" and caught_up + 1 < MOST_CAUGHT_UP:
        return Decision(True, following, caught_up + 1)
    return Decision(True, slot_after(schedule, slot, now), 0)
