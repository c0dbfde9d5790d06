"""The table of HTTP sessions: bounded for each caller and altogether, expiring, its caller's alone."""

from __future__ import annotations

from pathlib import Path

from host.http.callers import Caller
from host.http.mcp.wire import McpSessions
from shared.principals import Principal
from tests.mcp.over_http import RawHttp, new_token
from tests.running import new_host

OWNER = Principal("operator", "operator", "", 0)
ANN = Caller(OWNER, "ann", is_main=False, token_id="token-1")
ANN_AGAIN = Caller(OWNER, "ann", is_main=False, token_id="token-2")
VERSION = "2025-11-25"


class Clock:
    """Milliseconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_is_found_by_the_token_that_opened_it_alone() -> None:
    sessions = McpSessions()
    session = sessions.open(ANN, VERSION)
    assert sessions.find(session.id, ANN) is session
    assert sessions.find(session.id, ANN_AGAIN) is None
    assert not sessions.end(session.id, ANN_AGAIN)
    assert sessions.end(session.id, ANN)
    assert sessions.find(session.id, ANN) is None
    assert not sessions.end(session.id, ANN)


def test_a_caller_makes_room_among_its_own() -> None:
    sessions = McpSessions(most=10, most_of_a_caller=3)
    others = sessions.open(ANN_AGAIN, VERSION)
    first, second, third = (sessions.open(ANN, VERSION) for _ in range(3))
    assert sessions.find(first.id, ANN) is first
    sessions.open(ANN, VERSION)
    assert sessions.find(second.id, ANN) is None
    assert sessions.find(first.id, ANN) is first
    assert sessions.find(third.id, ANN) is third
    assert sessions.find(others.id, ANN_AGAIN) is others


def test_when_all_places_are_taken_the_longest_unused_makes_room() -> None:
    sessions = McpSessions(most=4, most_of_a_caller=3)
    callers = [Caller(OWNER, f"c{number}", is_main=False, token_id=str(number)) for number in range(5)]
    opened = [sessions.open(caller, VERSION) for caller in callers]
    assert len(sessions) == 4
    found = [sessions.find(each.id, caller) for each, caller in zip(opened, callers, strict=True)]
    assert found == [None, *opened[1:]]


def test_who_has_most_sessions_makes_room_whatever_its_tokens() -> None:
    sessions = McpSessions(most=4, most_of_a_caller=3)
    ben = Caller(Principal("prin-ben", "Ben", "", 0), "ben", is_main=False, token_id="token-9")
    first = sessions.open(ben, VERSION)
    callers = [Caller(OWNER, f"c{number}", is_main=False, token_id=str(number)) for number in range(5)]
    opened = [sessions.open(caller, VERSION) for caller in callers]
    assert sessions.find(first.id, ben) is first
    found = [sessions.find(each.id, caller) for each, caller in zip(opened, callers, strict=True)]
    assert found == [None, None, *opened[2:]]


async def test_an_idle_session_expires_but_not_in_the_middle_of_a_request() -> None:
    clock = Clock()
    sessions = McpSessions(idle_ms=1000, clock=clock)
    idle, busy = sessions.open(ANN, VERSION), sessions.open(ANN, VERSION)
    with busy.cancellable(1):
        clock.now = 1001
        assert sessions.find(idle.id, ANN) is None
        assert sessions.find(busy.id, ANN) is busy
    clock.now = 2500
    sessions.open(ANN, VERSION)
    assert len(sessions) == 1


def test_tokens_outlive_a_killed_host_and_their_end_does_too(tmp_path: Path) -> None:
    host = new_host(tmp_path, None).start()
    try:
        kept, ended = new_token(host, "laptop"), new_token(host, "laptop")
        with host.client() as owner:
            assert owner.delete(f"/tokens/{ended['id']}").status_code == 204
        host.kill()
        host.start()
        with RawHttp(host, kept["token"]) as client:
            assert client.hello().status_code == 200
        with RawHttp(host, ended["token"]) as client:
            assert client.hello().status_code == 401
    finally:
        host.kill()
