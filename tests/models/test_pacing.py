"""Streams that always have more take turns, and everything else on the loop gets its time."""

from __future__ import annotations

import asyncio
import itertools
import time

import anyio

from host.models.anthropic_model import Pacer

STREAMS = 200
PIECE_S = 0.0002


def work(seconds: float) -> None:
    """Keep the loop from everything else."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


async def test_one_stream_alone_never_waits_long() -> None:
    pacer = Pacer()
    with anyio.fail_after(60):
        for _ in range(10_000):
            await pacer.turn()


async def test_the_loop_comes_round_between_slices_however_many_streams_there_are() -> None:
    pacer = Pacer()
    rounds: list[float] = []
    taken = [0] * STREAMS

    async def stream(number: int) -> None:
        while True:
            work(PIECE_S)
            taken[number] += 1
            await pacer.turn()

    async def other() -> None:
        while len(rounds) < 60:
            rounds.append(time.thread_time())
            await asyncio.sleep(0)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(STREAMS):
                tasks.start_soon(stream, number)
            await asyncio.sleep(0)
            await other()
            tasks.cancel_scope.cancel()
    gaps = sorted(later - sooner for sooner, later in itertools.pairwise(rounds))
    assert gaps[len(gaps) // 2] < STREAMS * PIECE_S / 2  # without turns a round is a piece of every stream
    assert sum(taken) > STREAMS


async def test_all_streams_get_on() -> None:
    pacer = Pacer()
    taken = [0] * STREAMS

    async def stream(number: int) -> None:
        for _ in range(20):
            work(0.0001)
            taken[number] += 1
            await pacer.turn()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(STREAMS):
                tasks.start_soon(stream, number)
    assert taken == [20] * STREAMS


async def test_a_stream_that_is_cancelled_while_it_waits_holds_up_nobody() -> None:
    pacer = Pacer()
    done: list[int] = []

    async def stream(number: int) -> None:
        for _ in range(50):
            work(0.0005)
            await pacer.turn()
        done.append(number)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                if number % 2:
                    tasks.start_soon(stream, number)
                else:
                    with anyio.move_on_after(0.01):
                        await stream(number)
    assert {number for number in range(20) if number % 2} <= set(done)
