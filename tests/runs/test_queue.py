"""Who gets the next free place for a run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

import anyio
import pytest

from host.runs.admission import MOST_WAITING, Places, Share
from shared.errors import AtCapacity, Draining

LONG_MS = 60_000
HOLDER = Share(("operator", "holder", None))


def of(sender: str, conversation: str | None = None, principal: str = "operator") -> Share:
    return Share((principal, sender, conversation))


async def order_of(places: Places, *waiting: Share) -> list[int]:
    """Let these wait one after another, free one place at a time, and return who got it in which order."""
    got: list[int] = []

    def waiter(number: int) -> Callable[[], Coroutine[None, None, None]]:
        async def wait() -> None:
            await places.take(waiting[number])
            got.append(number)

        return wait

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(len(waiting)):
                tasks.start_soon(waiter(number))
                await anyio.wait_all_tasks_blocked()
            holding = HOLDER
            while len(got) < len(waiting):
                places.give_back(holding)
                await anyio.wait_all_tasks_blocked()
                holding = waiting[got[-1]]
    return got


def full(queue_ms: int = LONG_MS) -> Places:
    places = Places(1, queue_ms)
    assert places.take_now(HOLDER)
    return places


async def test_those_who_came_first_go_first_among_equals() -> None:
    assert await order_of(full(), of("a"), of("a"), of("a")) == [0, 1, 2]


async def test_one_sender_does_not_hold_up_another() -> None:
    assert await order_of(full(), of("a"), of("a"), of("a"), of("b")) == [0, 3, 1, 2]


async def test_one_conversation_does_not_hold_up_another_of_the_same_sender() -> None:
    assert await order_of(full(), of("a", "c1"), of("a", "c1"), of("a", "c1"), of("a", "c2")) == [0, 3, 1, 2]


async def test_a_latecomer_does_not_catch_up_on_places_it_never_asked_for() -> None:
    places = full()
    early = [of("a")] * 4
    late = [of("b")] * 3
    assert await order_of(places, *early, *late) == [0, 4, 1, 5, 2, 6, 3]


async def test_one_principal_does_not_hold_up_another_however_many_senders_it_has() -> None:
    flood = [of(f"s{number}", principal="prin-a") for number in range(3)]
    assert await order_of(full(), *flood, of("s", principal="prin-b")) == [0, 3, 1, 2]


async def test_a_principal_has_no_more_places_than_it_may_and_leaves_the_others_free() -> None:
    places = Places(3, LONG_MS)
    share = Share(("prin-a", "s", None), most=1)
    assert places.take_now(share)
    assert not places.take_now(share)
    assert places.full == ["prin-a"]
    assert places.take_now(of("s"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(places.take, share)
        await anyio.wait_all_tasks_blocked()
        places.give_back(of("s"))
        await anyio.wait_all_tasks_blocked()
        assert (places.waiting, places.free) == (1, 2)
        places.give_back(share)
    assert (places.waiting, places.free) == (0, 2)


def taken_by(places: Places, share: Share) -> int:
    count = 0
    while places.take_now(share):
        count += 1
    return count


async def test_without_a_limit_of_its_own_a_principal_leaves_as_many_places_free_as_it_has() -> None:
    places = Places(64, 0)
    assert taken_by(places, of("s", principal="prin-a")) == 32
    assert places.full == ["prin-a"]
    assert taken_by(places, of("s", principal="prin-b")) == 16
    assert taken_by(places, of("s")) == 16
    with pytest.raises(AtCapacity, match="The host runs 64 conversations at once already"):
        await places.take(of("s", principal="prin-c"))
    assert taken_by(Places(1, 0), of("s", principal="prin-a")) == 1


async def test_who_has_all_places_that_it_may_have_is_told_so() -> None:
    places = Places(3, 0)
    share = Share(("prin-a", "s", None), most=1)
    await places.take(share)
    with pytest.raises(AtCapacity, match="This principal has 1 conversations at once already"):
        await places.take(share)


async def test_who_waits_too_long_is_refused_and_leaves_no_trace() -> None:
    places = full(queue_ms=20)
    with pytest.raises(AtCapacity) as refused:
        await places.take(of("a"))
    assert refused.value.retry_after == 1
    places.give_back(HOLDER)
    assert places.free == 1


async def test_without_a_queue_nobody_waits() -> None:
    with pytest.raises(AtCapacity):
        await full(queue_ms=0).take(of("a"))


async def test_who_waits_when_the_host_stops_is_sent_away() -> None:
    places = full()

    async def wait() -> None:
        with pytest.raises(Draining):
            await places.take(of("a"))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            places.close()
    places.give_back(HOLDER)
    assert places.free == 1


async def test_so_many_wait_and_nobody_more() -> None:
    places = full()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(MOST_WAITING):
                tasks.start_soon(places.take, of("a"))
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(AtCapacity):
                await places.take(of("b"))
            tasks.cancel_scope.cancel()


async def test_a_full_queue_of_one_principal_has_room_for_others() -> None:
    places, refused = full(), 0

    async def wait(share: Share) -> None:
        nonlocal refused
        try:
            await places.take(share)
        except AtCapacity:
            refused += 1

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(MOST_WAITING):
                tasks.start_soon(wait, of(f"s{number}", principal="prin-a"))
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(wait, of("s", principal="prin-a"))
            await anyio.wait_all_tasks_blocked()
            assert refused == 1
            for share in (of("s"), of("s", principal="prin-b")):
                tasks.start_soon(wait, share)
            await anyio.wait_all_tasks_blocked()
            assert (refused, places.waiting) == (3, MOST_WAITING)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("called_first", [False, True])
async def test_no_place_is_lost_when_somebody_stops_waiting(called_first: bool) -> None:
    places = full()

    async def take_and_give_back() -> None:
        await places.take(of("a"))
        places.give_back(of("a"))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_and_give_back)
            await anyio.wait_all_tasks_blocked()
            if called_first:
                places.give_back(HOLDER)
            tasks.cancel_scope.cancel()
    if not called_first:
        places.give_back(HOLDER)
    assert places.free == 1
