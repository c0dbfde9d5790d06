"""Limits by the minute, on a clock of the test's own."""

from __future__ import annotations

import pytest

from host.runs.admission import MOST_KEYS, RateLimit


class Clock:
    def __init__(self) -> None:
        self.ms = 1000.0

    def __call__(self) -> float:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_limit_is_reached_and_passes_with_the_minute(clock: Clock) -> None:
    limit = RateLimit(2, clock)
    for _ in range(2):
        assert limit.retry_after("a") is None
        limit.count("a")
        clock.ms += 10_000
    assert limit.retry_after("a") == 40
    assert limit.retry_after("b") is None
    clock.ms += 39_000
    assert limit.retry_after("a") == 1
    clock.ms += 1_001
    assert limit.retry_after("a") is None


def test_zero_is_no_limit(clock: Clock) -> None:
    limit = RateLimit(0, clock)
    for _ in range(100):
        limit.count("a")
    assert limit.retry_after("a") is None


def test_what_went_on_after_the_limit_counts_too(clock: Clock) -> None:
    limit = RateLimit(1, clock)
    limit.count("a")
    clock.ms += 30_000
    limit.count("a")
    clock.ms += 30_001
    assert limit.retry_after("a") == 30


def test_of_very_many_callers_the_oldest_is_forgotten(clock: Clock) -> None:
    limit = RateLimit(1, clock)
    for number in range(MOST_KEYS + 1):
        limit.count(str(number))
    assert limit.retry_after("0") is None
    assert limit.retry_after("1") is not None
