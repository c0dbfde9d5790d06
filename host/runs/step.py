"""A step whose calls people were asked about is finished: what they allowed runs, the rest is told."""

from __future__ import annotations

from collections.abc import Sequence

from host.agent.endings import Asked
from host.agent.toolbox import Toolbox, result_block
from host.ports import ToolResult
from host.runs.recorder import RunRecorder
from shared.approval_values import Approval, ApprovalStatus
from shared.values import Block


async def finish_step(step: Sequence[Approval], toolbox: Toolbox, recorder: RunRecorder) -> None:
    """Run the stored inputs that were allowed, if they still may, and store a result for every request.

    Raises Asked for allowed calls that the calling program has to make.
    """
    refusals = {
        each.id: toolbox.refusal(each.tool, each.input, asked=True)
        for each in step
        if each.status is ApprovalStatus.ALLOWED
    }
    allowed = [each for each in step if refusals.get(each.id, "") is None]
    handed_on = {each.id: request for each in allowed if (request := toolbox.handed_on(each)) is not None}
    runs = [each for each in allowed if each.id not in handed_on]
    if not all(toolbox.read_only(each.tool) for each in runs):
        await recorder.acting()
    results: list[Block] = []
    for each in step:
        if each in runs:
            results.append(result_block(each.call_id, await toolbox.call(each.tool, each.input)))
        elif each.id in handed_on:
            continue
        elif refusal := refusals.get(each.id):
            results.append(result_block(each.call_id, ToolResult(refusal, is_error=True, trusted=True)))
        else:
            results.append(each.result())
    await recorder.finished_step(step, results)
    if handed_on:
        raise Asked(list(handed_on.values()))
