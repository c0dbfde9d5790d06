"""Who gets the next free place for a run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

import anyio
import pytest

from host.runs.admission import Places
from shared.errors import AtCapacity, Draining

LONG_MS = 60_000


async def order_of(places: Places, *waiting: tuple[str, str | None]) -> list[int]:
    """Let these wait one after another, free one place at a time, and return who got it in which order."""
    got: list[int] = []

    def waiter(number: int) -> Callable[[], Coroutine[None, None, None]]:
        async def wait() -> None:
            await places.take(*waiting[number])
            got.append(number)

        return wait

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(len(waiting)):
                tasks.start_soon(waiter(number))
                await anyio.wait_all_tasks_blocked()
            for _ in waiting:
                places.give_back()
                await anyio.wait_all_tasks_blocked()
    return got


def full(queue_ms: int = LONG_MS) -> Places:
    places = Places(1, queue_ms)
    assert places.take_now()
    return places


async def test_those_who_came_first_go_first_among_equals() -> None:
    assert await order_of(full(), ("a", None), ("a", None), ("a", None)) == [0, 1, 2]


async def test_one_sender_does_not_hold_up_another() -> None:
    assert await order_of(full(), ("a", None), ("a", None), ("a", None), ("b", None)) == [0, 3, 1, 2]


async def test_one_conversation_does_not_hold_up_another_of_the_same_sender() -> None:
    assert await order_of(full(), ("a", "c1"), ("a", "c1"), ("a", "c1"), ("a", "c2")) == [0, 3, 1, 2]


async def test_a_latecomer_does_not_catch_up_on_places_it_never_asked_for() -> None:
    places = full()
    early = [("a", None)] * 4
    late = [("b", None)] * 3
    assert await order_of(places, *early, *late) == [0, 4, 1, 5, 2, 6, 3]


async def test_who_waits_too_long_is_refused_and_leaves_no_trace() -> None:
    places = full(queue_ms=20)
    with pytest.raises(AtCapacity) as refused:
        await places.take("a", None)
    assert refused.value.retry_after == 1
    places.give_back()
    assert places.free == 1


async def test_without_a_queue_nobody_waits() -> None:
    with pytest.raises(AtCapacity):
        await full(queue_ms=0).take("a", None)


async def test_who_waits_when_the_host_stops_is_sent_away() -> None:
    places = full()

    async def wait() -> None:
        with pytest.raises(Draining):
            await places.take("a", None)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            places.close()
    places.give_back()
    assert places.free == 1


@pytest.mark.parametrize("called_first", [False, True])
async def test_no_place_is_lost_when_somebody_stops_waiting(called_first: bool) -> None:
    places = full()

    async def take_and_give_back() -> None:
        await places.take("a", None)
        places.give_back()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_and_give_back)
            await anyio.wait_all_tasks_blocked()
            if called_first:
                places.give_back()
            tasks.cancel_scope.cancel()
    if not called_first:
        places.give_back()
    assert places.free == 1
