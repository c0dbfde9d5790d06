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

    Raises Asked for allowed calls that the calling program has to make, and where a server asks a person
    again before it answers.
    """
    allowed = [each for each in step if each.status is ApprovalStatus.ALLOWED]
    refusals = {each.call_id: toolbox.refusal(each.tool, each.call["input"], asked=True) for each in allowed}
    may_run = [each for each in allowed if refusals[each.call_id] is None]
    asked = [request for each in may_run if (request := toolbox.handed_on(each)) is not None]
    handed_on = {request.call_id for request in asked}
    runs = [each.call for each in may_run if each.call_id not in handed_on]
    if not all(toolbox.read_only(call["name"]) for call in runs):
        await recorder.acting()
    made: dict[str, ToolResult] = {}
    for call in runs:
        toolbox.answers[:] = call["answers"]
        made[call["id"]] = await toolbox.changed(call) or await toolbox.call(call["name"], call["input"])
    toolbox.answers.clear()
    asked += await toolbox.parked(runs, made)
    results: list[Block] = []
    for each in step:
        if each.call_id in made:
            results.append(result_block(each.call_id, made[each.call_id]))
        elif refusal := refusals.get(each.call_id):
            results.append(result_block(each.call_id, ToolResult(refusal, is_error=True, trusted=True)))
        elif each.call_id not in refusals:
            results.append(each.result())
    await recorder.finished_step(step, results)
    if asked:
        raise Asked(asked)
