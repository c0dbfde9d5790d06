"""Looks at directories whose file system may hang."""

from __future__ import annotations

import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from host.volumes import Looks


async def test_a_look_whose_caller_left_does_not_cost_the_next_one_its_answer() -> None:
    looks, begun, answers = Looks(), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        answers.wait()

    async with anyio.create_task_group() as leaving:
        leaving.start_soon(looks, slow)
        await anyio.to_thread.run_sync(begun.wait)
        leaving.cancel_scope.cancel()
    async with anyio.create_task_group() as tasks:
        found: list[int] = []

        async def ask() -> None:
            found.append(await looks(lambda: 7))

        tasks.start_soon(ask)
        await anyio.lowlevel.checkpoint()
        answers.set()
    assert found == [7]


async def test_what_a_look_raises_reaches_its_caller_and_nobody_else() -> None:
    looks = Looks()
    with pytest.raises(ZeroDivisionError):
        await looks(lambda: 1 // 0)
    assert await looks(lambda: 7) == 7
