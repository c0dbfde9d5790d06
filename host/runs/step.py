"""A step whose calls people were asked about is finished: what they allowed runs, the rest is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from host.agent.subagents import Subagents
from host.agent.toolbox import Toolbox
from host.agent.waited import Waited
from host.runs.recorder import RunRecorder
from shared.approval_values import Approval


async def finish_step(
    step: Sequence[Approval],
    stopped: Mapping[str, Any],
    toolbox: Toolbox,
    subagents: Subagents,
    recorder: RunRecorder,
) -> None:
    """Run the stored inputs that were allowed, if they still may, and store a result for every request.

    ``stopped``: subagents that go on, by the call that began each. Raises Asked where one of them, the
    calling program or a server has to be waited for.
    """
    waited = Waited([each for each in step if not each.subagent], stopped, {each.id: each for each in step})
    if stopped or waited.acts(toolbox):
        await recorder.acting()
    results, asked = await waited.results(toolbox, subagents.resume)
    await recorder.finished_step(step, results)
    if asked is not None:
        raise asked
